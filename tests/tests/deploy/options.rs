//! Arguments and variables of containers against the programs that read them.

use std::{cell::RefCell, collections::BTreeSet};

use clap::{CommandFactory as _, Parser};
use runtime::{
    args::{Problems, log::LogArgs},
    telemetry::settings::Settings,
};
use serde_json::Value;

use crate::render::{Install, pod};

/// Variables that the programs, or libraries in them, read by themselves.
const READ: &[&str] = &["NODE_NAME", "POD_NAME", "POD_NAMESPACE", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];

/// As `portico gateway` takes them.
#[derive(Parser)]
struct Gateway {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    args: gateway::config::Args,
}

/// As `portico agent` takes them.
#[derive(Parser)]
struct Agent {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    args: agent::config::Args,
}

/// What is wrong with the containers of an installation.
pub fn wrong(install: &Install) -> Vec<String> {
    let mut found = telemetry(install);
    for (key, object) in &install.objects {
        let Some(pod) = pod(object) else { continue };
        for container in list(&pod["spec"]["containers"]) {
            found.extend(
                arguments(container).into_iter().chain(variables(container)).map(|text| format!("{key}: {text}")),
            );
        }
    }
    found.into_iter().map(|text| format!("{}: {text}", install.name)).collect()
}

/// Arguments that the program refuses, in its words.
fn arguments(container: &Value) -> Vec<String> {
    let words = list(&container["args"]).iter().map(|word| expanded(word.as_str().unwrap_or_default(), container));
    let words: Vec<String> = words.collect();
    let mut problems = Problems::new();
    let parsed = match words.first().map(String::as_str) {
        Some("gateway") => Gateway::try_parse_from(&words).map(|cli| {
            cli.log.parse(&mut problems);
            cli.args.parse(&mut problems);
        }),
        Some("agent") => Agent::try_parse_from(&words).map(|cli| {
            cli.log.parse(&mut problems);
            cli.args.parse(&mut problems, Some("node-1".to_owned()), "host");
        }),
        other => return vec![format!("there is no subcommand {other:?}")],
    };
    let refused = parsed.err().map(|error| error.to_string().lines().next().unwrap_or_default().to_owned());
    refused.into_iter().chain(problems.lines()).collect()
}

/// Variables that are neither read by the program nor used in an argument.
fn variables(container: &Value) -> Vec<String> {
    let command = match list(&container["args"]).first().and_then(Value::as_str) {
        Some("gateway") => Gateway::command(),
        _ => Agent::command(),
    };
    let of_options: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let used = |name: &str| {
        let arguments = list(&container["args"]);
        arguments.iter().filter_map(Value::as_str).any(|argument| argument.contains(&format!("$({name})")))
    };
    let names = list(&container["env"]).iter().filter_map(|variable| variable["name"].as_str());
    names
        .filter(|name| !of_options.contains(*name) && !READ.contains(name) && !used(name))
        .map(|name| format!("nothing reads the variable {name}"))
        .collect()
}

/// An argument with the variables of its container put in, as the kubelet does.
fn expanded(word: &str, container: &Value) -> String {
    list(&container["env"]).iter().fold(word.to_owned(), |word, variable| {
        let name = variable["name"].as_str().unwrap_or_default();
        // An IPv6 address is the harder case where an address is put together with a port.
        let value = if name == "NODE_IP" { "fd45::11" } else { "value" };
        word.replace(&format!("$({name})"), value)
    })
}

/// Settings of telemetry that are wrong, or that nothing reads.
fn telemetry(install: &Install) -> Vec<String> {
    let Some(map) = install.objects.get("ConfigMap portico-system/portico-telemetry") else {
        return vec!["there is no ConfigMap portico-telemetry".to_owned()];
    };
    let asked = RefCell::new(BTreeSet::new());
    let mut problems = Problems::new();
    let lookup = |name: &str| {
        asked.borrow_mut().insert(name.to_owned());
        map["data"][name].as_str().map(str::to_owned)
    };
    Settings::parse(lookup, &mut problems);
    let asked = asked.into_inner();
    let unread = map["data"].as_object().into_iter().flatten().filter(|(name, _)| !asked.contains(*name));
    unread.map(|(name, _)| format!("nothing reads the variable {name}")).chain(problems.lines()).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
