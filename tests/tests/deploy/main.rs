//! What lies in `deploy/`: it says one thing in two ways, is valid, fits the programs, and asks for no more than it needs.

mod options;
mod references;
mod render;
mod rights;
mod types;

use std::fs;

use render::{Install, Objects, examples, helm, installs};
use tests::tools::root;

/// Fails with all that is wrong, one line each.
fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

#[test]
fn the_chart_installs_what_the_kustomizations_install() {
    let mut wrong = Vec::new();
    for Install { name, objects, values } in installs() {
        let mut expected = objects.clone();
        // Helm keeps the record of a release in its namespace, which therefore is there before the chart is.
        expected.retain(|key, _| !key.starts_with("Namespace "));
        let differences = render::differences(&expected, &helm(values));
        wrong.extend(differences.into_iter().map(|line| format!("{name}: {line}")));
    }
    assert_none(wrong);
}

#[test]
fn every_object_is_one_that_the_api_server_knows() {
    let check = |name: &str, objects: &Objects| -> Vec<String> {
        let wrong = |(key, object)| Some(format!("{name}: {key}: {}", types::check(object).err()?));
        objects.iter().filter_map(wrong).collect()
    };
    let installs = installs().iter().flat_map(|install| check(&install.name, &install.objects));
    assert_none(installs.chain(examples().iter().flat_map(|(name, objects)| check(name, objects))).collect());
}

#[test]
fn a_field_that_does_not_exist_is_found() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1, targetport: 2}]}\n";
    let objects = render::parse(text);
    let found = types::check(&objects["Service a"]);
    assert_eq!(found, Err("spec.ports[0].targetport is not a field".to_owned()));
}

#[test]
fn containers_are_given_options_and_variables_that_exist() {
    assert_none(installs().iter().flat_map(options::wrong).collect());
}

#[test]
fn what_objects_refer_to_is_there() {
    assert_none(installs().iter().flat_map(references::wrong).collect());
}

#[test]
fn rights_are_as_narrow_as_documented() {
    let installs = installs();
    assert_none(installs.iter().flat_map(rights::wrong).collect());
    assert_none(rights::undocumented(
        &installs[0],
        &fs::read_to_string(root().join("docs/install.md")).expect("a text"),
    ));
}

#[test]
fn everything_names_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = fs::read_to_string(root().join("deploy/helm/portico/Chart.yaml")).expect("the chart has a description");
    assert!(chart.contains(&format!("\nversion: {version}\n")), "{chart}");
    assert!(chart.contains(&format!("\nappVersion: {version}\n")), "{chart}");
    let expected = format!("portico:{version}");
    let objects = &installs()[0].objects;
    let workloads: Vec<_> = objects.values().filter_map(render::pod).collect();
    assert_eq!(workloads.len(), 2);
    for pod in workloads {
        assert_eq!(pod["spec"]["containers"][0]["image"], *expected);
    }
}
