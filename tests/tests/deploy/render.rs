//! Objects as `kubectl kustomize` and `helm template` print them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;
use tests::tools::{find, root};

/// By kind, namespace and name.
pub type Objects = BTreeMap<String, Value>;

/// One way to install Portico, and the values that make the chart the same.
pub struct Install {
    pub name: String,
    pub objects: Objects,
    pub values: Vec<String>,
}

/// Every overlay, and the base with each component that no overlay has. The base comes first. They are rendered once for all
/// tests.
pub fn installs() -> &'static [Install] {
    static INSTALLS: LazyLock<Vec<Install>> = LazyLock::new(render);
    &INSTALLS
}

fn render() -> Vec<Install> {
    let overlay = |path: &str, values: &[&str]| Install {
        name: path.to_owned(),
        objects: kustomize(&root().join("deploy").join(path)),
        values: values.iter().map(ToString::to_string).collect(),
    };
    let component = |name: &str, values: &[&str]| Install {
        name: format!("base with {name}"),
        objects: with_component(name),
        values: values.iter().map(ToString::to_string).collect(),
    };
    let endpoint = "telemetry.OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector.observability.svc:4317";
    vec![
        overlay("base", &[]),
        overlay("overlays/cloud", &["--values=deploy/helm/values/cloud.yaml"]),
        overlay("overlays/replace-kube-proxy", &["--values=deploy/helm/values/replace-kube-proxy.yaml"]),
        overlay("overlays/sandbox", &["--values=deploy/helm/values/sandbox.yaml"]),
        overlay(
            "overlays/sandbox-replace-kube-proxy",
            &["--values=deploy/helm/values/sandbox.yaml", "--set=replaceKubeProxy=true"],
        ),
        component("cert-manager", &["--set=certManager.enabled=true"]),
        component("service-monitor", &["--set=serviceMonitor.enabled=true"]),
        component("opentelemetry", &[&format!("--set={endpoint}")]),
    ]
}

/// What lies in `deploy/examples`, by file.
pub fn examples() -> Vec<(String, Objects)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("deploy/examples")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).expect("examples are texts");
                found.push((path.strip_prefix(root()).expect("in the checkout").display().to_string(), parse(&text)));
            }
        }
    }
    assert!(!found.is_empty(), "deploy/examples holds nothing");
    found
}

/// What the chart makes of these options.
pub fn helm(options: &[String]) -> Objects {
    let mut command = Command::new(find("helm"));
    // A helm built from its module takes a release long past for granted, which the chart refuses.
    command.args([
        "template",
        "portico",
        "deploy/helm/portico",
        "--namespace=portico-system",
        "--include-crds",
        "--kube-version=1.36.3",
    ]);
    parse(&output(command.args(options)))
}

fn kustomize(directory: &Path) -> Objects {
    parse(&output(Command::new(find("kubectl")).arg("kustomize").arg(directory)))
}

/// The base with one component, as an overlay of a user would have it.
fn with_component(name: &str) -> Objects {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    // kustomize takes paths relative to the file only.
    let path = folder.path().canonicalize().expect("it exists");
    let up = "../".repeat(path.components().filter(|part| matches!(part, Component::Normal(_))).count());
    let deploy = root().canonicalize().expect("it exists").join("deploy");
    let deploy = format!("{up}{}", deploy.strip_prefix("/").expect("absolute").display());
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         resources: [{deploy}/base]\ncomponents: [{deploy}/components/{name}]\n"
    );
    fs::write(path.join("kustomization.yaml"), text).expect("it can be written");
    kustomize(&path)
}

fn output(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("YAML is UTF-8")
}

/// The objects of a text of YAML documents.
///
/// # Panics
/// When it is none, or holds an object twice.
pub fn parse(text: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut objects = Objects::new();
    for object in documents.into_iter().filter(|document| !document.is_null()) {
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let name = [part(&metadata["namespace"]), part(&metadata["name"])].join("/");
        let key = format!("{} {}", part(&object["kind"]), name.trim_start_matches('/'));
        assert!(objects.insert(key.clone(), object).is_none(), "{key} is there twice");
    }
    objects
}

/// The Pod template of an object that has one.
pub fn pod(object: &Value) -> Option<&Value> {
    object["spec"].get("template").filter(|template| template["spec"].get("containers").is_some())
}

/// Where two sets of objects differ, one line each.
pub fn differences(kustomize: &Objects, helm: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for (key, object) in kustomize {
        match helm.get(key) {
            Some(other) => compare(&format!("{key}: "), object, other, &mut found),
            None => found.push(format!("{key}: the chart lacks it")),
        }
    }
    found.extend(
        helm.keys().filter(|key| !kustomize.contains_key(*key)).map(|key| format!("{key}: only the chart has it")),
    );
    found
}

fn compare(path: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}.{key}"), &value(left), &value(right), found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (at, (left, right)) in left.iter().zip(right).enumerate() {
                compare(&format!("{path}[{at}]"), left, right, found);
            }
        }
        // How a number is written, as 0 or 0.0, says nothing.
        (Value::Number(left), Value::Number(right)) if left.as_f64() == right.as_f64() => {}
        _ if left == right => {}
        _ => found.push(format!("{path}: kustomize has {left}, helm has {right}")),
    }
}
