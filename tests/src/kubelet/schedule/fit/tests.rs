use serde_json::{Value, json};

use super::*;

fn node(name: &str, extra: &Value) -> Node {
    let zone = if name == "node-1" { "zone-a" } else { "zone-b" };
    let mut node = json!({ "metadata": { "name": name, "labels": {
        "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone, "disks": "4" } }, "spec": {} });
    merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, spec: &Value) -> Pod {
    let mut pod = json!({ "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" },
        "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "1", "controller": true }] },
        "spec": { "containers": [] } });
    merge(&mut pod["spec"], spec);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Chooses between `node-1` and `node-2`; `here` are the Pods that `node-1` has.
#[track_caller]
fn check(spec: Value, first: Value, here: &[Value], expected: Result<&str, &str>) {
    let nodes = [node("node-1", &first), node("node-2", &json!({ "spec": { "unschedulable": true } }))];
    let here: Vec<Pod> = here
        .iter()
        .map(|spec| {
            let mut spec = spec.clone();
            merge(&mut spec, &json!({ "nodeName": "node-1" }));
            pod("here", &spec)
        })
        .collect();
    let chosen = choose(&pod("new", &spec), &nodes, &here.iter().collect::<Vec<_>>());
    match expected {
        Ok(name) => assert_eq!(chosen.as_deref(), Ok(name)),
        Err(reason) => {
            let said = chosen.unwrap_err().to_string();
            assert!(said.contains(reason), "{said} does not say {reason}");
        }
    }
}

#[test]
fn a_pod_goes_where_nothing_forbids_it() {
    check(json!({}), json!({}), &[], Ok("node-1"));
    check(json!({}), json!({ "spec": { "unschedulable": true } }), &[], Err("unschedulable"));
}

#[test]
fn node_selectors_and_affinities_exclude() {
    let affinity = |requirement: Value| {
        json!({ "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [requirement] } } } })
    };
    let label = |key: &str, operator: &str, values: Value| {
        affinity(json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }))
    };
    let miss = Err("affinity/selector");
    check(json!({ "nodeSelector": { "disks": "4" } }), json!({}), &[], Ok("node-1"));
    check(json!({ "nodeSelector": { "disks": "5" } }), json!({}), &[], miss);
    check(label("disks", "In", json!(["3", "4"])), json!({}), &[], Ok("node-1"));
    check(label("disks", "NotIn", json!(["4"])), json!({}), &[], miss);
    check(label("disks", "Exists", json!([])), json!({}), &[], Ok("node-1"));
    check(label("disks", "DoesNotExist", json!([])), json!({}), &[], miss);
    check(label("disks", "Gt", json!(["3"])), json!({}), &[], Ok("node-1"));
    check(label("disks", "Lt", json!(["4"])), json!({}), &[], miss);
    check(affinity(json!({})), json!({}), &[], miss);
}

#[test]
fn a_pod_of_a_daemon_set_goes_to_its_node_though_it_is_cordoned() {
    let spec = json!({
        "tolerations": [{ "key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule" }],
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["node-2"] }] }] } } },
    });
    check(spec, json!({}), &[], Ok("node-2"));
}

#[test]
fn taints_need_tolerations() {
    let tainted = |effect: &str| json!({ "spec": { "taints": [{ "key": "gpu", "value": "yes", "effect": effect }] } });
    let tolerating = |toleration: Value| json!({ "tolerations": [toleration] });
    let miss = Err("untolerated");
    check(json!({}), tainted("NoSchedule"), &[], miss);
    check(json!({}), tainted("NoExecute"), &[], miss);
    check(json!({}), tainted("PreferNoSchedule"), &[], Ok("node-1"));
    check(tolerating(json!({ "operator": "Exists" })), tainted("NoSchedule"), &[], Ok("node-1"));
    check(tolerating(json!({ "key": "gpu", "value": "yes" })), tainted("NoSchedule"), &[], Ok("node-1"));
    check(tolerating(json!({ "key": "gpu", "value": "no" })), tainted("NoSchedule"), &[], miss);
    let other_effect = json!({ "key": "gpu", "operator": "Exists", "effect": "NoExecute" });
    check(tolerating(other_effect), tainted("NoSchedule"), &[], miss);
}

#[test]
fn host_ports_are_taken_once() {
    let spec = json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] });
    let other = json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80, "hostPort": 80, "protocol": "UDP" }] }] });
    check(spec.clone(), json!({}), std::slice::from_ref(&spec), Err("free ports"));
    check(spec, json!({}), &[other], Ok("node-1"));
}

#[test]
fn pods_keep_apart_and_together_as_they_require() {
    let term =
        json!([{ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "web" } } }]);
    let required =
        |kind: &str| json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": term } } });
    let miss = Err("anti-affinity");
    check(required("podAntiAffinity"), json!({}), &[], Ok("node-1"));
    check(required("podAntiAffinity"), json!({}), &[json!({})], miss);
    // The one that is there objects just as well.
    check(json!({}), json!({}), &[required("podAntiAffinity")], miss);
    check(required("podAffinity"), json!({}), &[json!({})], Ok("node-1"));
    // The first of its kind has nobody to join.
    check(required("podAffinity"), json!({}), &[], Ok("node-1"));
}

#[test]
fn spread_constraints_count_the_emptiest_domain_that_the_pod_may_go_to() {
    let spread = |key: &str, skew: i32| {
        json!({ "topologySpreadConstraints": [{ "maxSkew": skew, "topologyKey": key,
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "web" } } }] })
    };
    let miss = Err("spread constraints");
    for key in ["kubernetes.io/hostname", "topology.kubernetes.io/zone"] {
        check(spread(key, 1), json!({}), &[], Ok("node-1"));
        check(spread(key, 1), json!({}), &[json!({})], miss);
        check(spread(key, 2), json!({}), &[json!({})], Ok("node-1"));
    }
    check(spread("rack", 1), json!({}), &[], miss);
    // A node that the selector excludes is not a domain that could be filled instead.
    let mut bound = spread("kubernetes.io/hostname", 1);
    merge(&mut bound, &json!({ "nodeSelector": { "kubernetes.io/hostname": "node-1" } }));
    check(bound, json!({}), &[json!({})], Ok("node-1"));
}

#[test]
fn siblings_are_spread_before_nodes_are_levelled() {
    let nodes = [node("node-1", &json!({})), node("node-2", &json!({}))];
    let on = |name: &str, owner: &str| {
        let mut pod = pod("there", &json!({ "nodeName": name }));
        pod.metadata.owner_references.as_mut().unwrap()[0].uid = owner.to_owned();
        pod
    };
    let placed = [on("node-1", "1"), on("node-2", "2"), on("node-2", "3")];
    let placed: Vec<_> = placed.iter().collect();
    assert_eq!(choose(&pod("new", &json!({})), &nodes, &placed), Ok("node-2".to_owned()));
    assert_eq!(choose(&pod("new", &json!({})), &nodes, &placed[1..]), Ok("node-1".to_owned()));
}
