//! What the roles allow, and what `docs/install.md` says that they allow.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::render::Install;

/// Verbs that change nothing.
const READING: &[&str] = &["get", "list", "watch"];

/// What may be changed in the whole cluster, with which verbs. A line more is a decision.
const CHANGES: &[(&str, &str)] = &[
    ("authentication.k8s.io/tokenreviews", "create"),
    ("services", "patch"),
    ("services/status", "patch"),
    ("events.k8s.io/events", "create"),
    ("events.k8s.io/events", "patch"),
];

/// One right: who, where (`cluster` or `namespace`), what, of which name, with which verb.
type Right = (String, String, String, String, String);

/// Rights of an installation that go too far.
pub fn wrong(install: &Install) -> Vec<String> {
    let mut found = Vec::new();
    for right @ (_, place, resource, _, verb) in &rights(install) {
        let fields = [&right.2, &right.3, &right.4];
        let is_pattern = fields.iter().any(|field| field.contains('*'));
        let is_change = place == "cluster" && !READING.contains(&verb.as_str());
        if is_pattern || (is_change && !CHANGES.contains(&(resource, verb))) {
            found.push(format!("{}: {right:?} goes too far", install.name));
        }
    }
    found
}

/// Rights that are not in the table of the document, and lines of the table that no role has.
pub fn undocumented(install: &Install, document: &str) -> Vec<String> {
    let (given, told) = (rights(install), documented(document));
    let missing = given.difference(&told).map(|right| format!("docs/install.md lacks {right:?}"));
    let stale = told.difference(&given).map(|right| format!("docs/install.md tells of {right:?}, which no role has"));
    missing.chain(stale).collect()
}

/// The table whose lines are `| who | where | resource | names | verbs | why |`.
fn documented(document: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for line in document.lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        let [who, place, resources, names, verbs, _why] = cells.as_slice() else { continue };
        if !["gateway", "agent"].contains(&who.as_str()) {
            continue;
        }
        for resource in resources.split(", ") {
            for verb in verbs.split(", ") {
                let name = if names == "any" { String::new() } else { names.clone() };
                rights.insert((who.clone(), place.clone(), resource.to_owned(), name, verb.to_owned()));
            }
        }
    }
    rights
}

fn rights(install: &Install) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for object in install.objects.values() {
        let place = match object["kind"].as_str() {
            Some("ClusterRole") => "cluster",
            Some("Role") => "namespace",
            _ => continue,
        };
        let who = object["metadata"]["name"].as_str().unwrap_or_default().trim_start_matches("portico-");
        for rule in list(&object["rules"]) {
            for (group, resource, name, verb) in combinations(rule) {
                let resource = if group.is_empty() { resource } else { format!("{group}/{resource}") };
                rights.insert((who.to_owned(), place.to_owned(), resource, name, verb));
            }
        }
    }
    assert!(!rights.is_empty(), "{} has no roles", install.name);
    rights
}

/// Group, resource, name (empty for any) and verb, each with each, as RBAC takes a rule.
fn combinations(rule: &Value) -> Vec<(String, String, String, String)> {
    let names = match strings(&rule["resourceNames"]) {
        names if names.is_empty() => vec![String::new()],
        names => names,
    };
    let mut all = Vec::new();
    for group in strings(&rule["apiGroups"]) {
        for resource in strings(&rule["resources"]) {
            for name in &names {
                let verbs = strings(&rule["verbs"]).into_iter();
                all.extend(verbs.map(|verb| (group.clone(), resource.clone(), name.clone(), verb)));
            }
        }
    }
    all
}

fn strings(value: &Value) -> Vec<String> {
    list(value).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
