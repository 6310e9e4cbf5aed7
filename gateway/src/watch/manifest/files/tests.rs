use std::os::unix::fs::symlink;

use super::*;

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

fn merge(files: &mut Files) -> (Vec<String>, Vec<String>) {
    let merged = files.merge();
    let duplicates =
        merged.duplicates.iter().flat_map(|(key, problems)| problems.iter().map(move |p| format!("{key}: {p}")));
    let problems = merged.broken.iter().map(Problem::to_string).chain(duplicates);
    (merged.objects.keys().map(ObjectKey::to_string).collect(), problems.collect())
}

#[test]
fn a_broken_file_keeps_its_last_good_content_and_the_others_live_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let mut files = Files::new(directory.path().to_owned());
    fs::write(path("a.yaml"), node("a")).expect("writes");
    fs::write(path("b.yaml"), "kind: [").expect("writes");
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    let (objects, problems) = merge(&mut files);
    assert_eq!(objects, ["Node a"]);
    assert!(problems[0].starts_with("BROKEN_FILE: b.yaml: line "), "{problems:?}");
    assert!(!files.scan(Timestamp::UNIX_EPOCH), "nothing changed");

    fs::write(path("a.yaml"), "apiVersion: v1\nkind: Node\nmetadata: {name: [}\n").expect("writes");
    fs::write(path("b.yaml"), node("b") + "---\n" + &node("c")).expect("writes");
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    let (objects, problems) = merge(&mut files);
    assert_eq!(objects, ["Node a", "Node b", "Node c"]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("BROKEN_FILE: a.yaml: line 3, column "), "{problems:?}");
    assert!(problems[0].ends_with("; its last good content is still served"), "{problems:?}");

    fs::write(path("a.yaml"), node("d")).expect("writes");
    fs::remove_file(path("b.yaml")).expect("removes");
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    assert_eq!(merge(&mut files), (vec!["Node d".to_owned()], vec![]));
}

#[test]
fn the_first_file_by_path_serves_what_stands_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("sub")).expect("creates");
    fs::write(
        directory.path().join("sub/b.json"),
        "{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"a\"}}",
    )
    .expect("writes");
    fs::write(directory.path().join("a.yml"), node("a")).expect("writes");
    fs::write(directory.path().join("a.txt"), node("ignored")).expect("writes");
    fs::write(directory.path().join(".hidden.yaml"), node("hidden")).expect("writes");
    let mut files = Files::new(directory.path().to_owned());
    files.scan(Timestamp::UNIX_EPOCH);
    let (objects, problems) = merge(&mut files);
    assert_eq!(objects, ["Node a"]);
    assert_eq!(problems, ["Node a: DUPLICATE_OBJECT: sub/b.json:1 defines it again; a.yml:1 is served"]);
}

#[test]
fn a_mounted_volume_is_read_through_its_links_and_a_lost_one_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("mount");
    let version = |name: &str, object: &str| {
        fs::create_dir_all(root.join(name)).expect("creates");
        fs::write(root.join(name).join("x.yaml"), node(object)).expect("writes");
    };
    version("..2026_1", "one");
    symlink("..2026_1", root.join("..data")).expect("links");
    symlink("..data/x.yaml", root.join("x.yaml")).expect("links");
    let mut files = Files::new(root.clone());
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    assert_eq!(merge(&mut files).0, ["Node one"]);

    version("..2026_2", "two");
    symlink("..2026_2", root.join("..tmp")).expect("links");
    fs::rename(root.join("..tmp"), root.join("..data")).expect("swaps");
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    assert_eq!(merge(&mut files).0, ["Node two"]);

    fs::rename(&root, directory.path().join("away")).expect("renames");
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    let (objects, problems) = merge(&mut files);
    assert_eq!(objects, ["Node two"]);
    assert!(problems[0].starts_with("UNREADABLE_DIRECTORY: "), "{problems:?}");
    fs::rename(directory.path().join("away"), &root).expect("renames");
    assert!(files.scan(Timestamp::UNIX_EPOCH));
    assert_eq!(merge(&mut files), (vec!["Node two".to_owned()], vec![]));
}

#[test]
fn objects_without_a_creation_time_get_the_time_at_which_they_were_first_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("a.yaml"), node("a")).expect("writes");
    let mut files = Files::new(directory.path().to_owned());
    let mut created = |seconds: i64| {
        files.scan(Timestamp::from_second(seconds).expect("a time"));
        let merged = files.merge();
        let of = |(key, object): (&ObjectKey, &Object)| {
            (key.name.to_string(), object.created().map(|time| time.0.as_second()))
        };
        merged.objects.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(created(10), [("a".to_owned(), Some(10))]);
    fs::write(directory.path().join("b.yaml"), node("b")).expect("writes");
    assert_eq!(created(20), [("a".to_owned(), Some(10)), ("b".to_owned(), Some(20))]);
    fs::write(directory.path().join("a.yaml"), node("a") + "# changed\n").expect("writes");
    assert_eq!(created(30)[0], ("a".to_owned(), Some(10)));
    fs::remove_file(directory.path().join("a.yaml")).expect("removes");
    assert_eq!(created(40).len(), 1);
    fs::write(directory.path().join("a.yaml"), node("a")).expect("writes");
    assert_eq!(created(50)[0], ("a".to_owned(), Some(50)), "another object of the same name");
}
