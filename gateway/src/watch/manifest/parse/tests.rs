use super::*;

fn names(text: &str) -> Vec<String> {
    let parsed = parse(text.as_bytes()).expect("parses");
    parsed.objects.iter().map(|(line, object)| format!("{line} {}", object.key())).collect()
}

fn error(text: &str) -> String {
    parse(text.as_bytes()).expect_err("does not parse").to_string()
}

#[test]
fn documents_lists_and_json_give_objects_with_lines() {
    let yaml = "# a comment\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n---\n# nothing\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: x}\nspec: {containers: []}\n";
    assert_eq!(names(yaml), ["2 Service default/a", "9 Pod x/b"]);
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: n}\n\
                - apiVersion: v1\n  kind: Secret\n  metadata: {name: s}\n";
    assert_eq!(names(list), ["4 Node n", "7 Secret default/s"]);
    let typed = r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}]}"#;
    assert_eq!(names(typed), ["1 Service default/a"]);
    assert_eq!(names(""), Vec::<String>::new());
    assert_eq!(names("---\n"), Vec::<String>::new());
}

#[test]
fn other_kinds_are_counted() {
    let text =
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: apps/v1\nkind: Deployment\n";
    let parsed = parse(text.as_bytes()).expect("parses");
    assert!(parsed.objects.is_empty());
    assert_eq!(parsed.others, BTreeMap::from([("apps/v1 Deployment".to_owned(), 2)]));
}

#[test]
fn errors_name_line_column_and_field() {
    let wrong_type = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: http\n";
    let message = error(wrong_type);
    assert!(message.starts_with("line 8, column 11: spec.ports[0].port: "), "{message}");
    let in_list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  \
                   spec: {ports: [{port: http}]}\n";
    let message = error(in_list);
    assert!(message.starts_with("line 4, column 3: items[0].spec.ports[0].port: "), "{message}");
    let garbage = "apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec: [}\n";
    let message = error(garbage);
    assert!(message.starts_with("line "), "{message}");
    assert!(!message.contains('\n'), "one line: {message}");
    assert_eq!(
        error("metadata: {name: a}\n"),
        "line 1, column 1: apiVersion: is missing; every object needs apiVersion and kind"
    );
    let message = error("apiVersion: v1\nkind: Service\nmetadata: {}\n");
    assert_eq!(message, "line 1, column 1: metadata.name: is missing");
    let message = error("apiVersion: v1\nkind: Service\nmetadata: {name: a/b}\n");
    assert!(message.contains("metadata.name: \"a/b\" is not a name"), "{message}");
    assert_eq!(parse(b"a: b\nc: \xff").expect_err("is not text").to_string(), "line 2, column 4: is not UTF-8 text");
}
