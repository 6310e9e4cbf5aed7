use serde_json::{Value, json};

use super::*;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web-1", "namespace": "shop", "uid": "u-1", "labels": { "app": "web" },
            "annotations": { "note": "a b" } },
        "spec": { "nodeName": "node-1", "serviceAccountName": "seller", "containers": [] },
    }))
    .unwrap()
}

fn addresses() -> Addresses {
    let parse = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
    Addresses { pod: parse(&["10.244.0.2", "fd44::2"]), host: parse(&["10.245.0.11", "fd45::11"]) }
}

fn sources() -> Sources {
    let data = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let service = |namespace: &str, name: &str, ip: &str| {
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": namespace },
            "spec": { "clusterIP": ip, "ports": [{ "name": "https", "port": 443 }] } }))
        .unwrap()
    };
    Sources {
        config_maps: BTreeMap::from([("settings".to_owned(), data("colour", "red"))]),
        secrets: BTreeMap::from([("keys".to_owned(), data("door", "1234"))]),
        services: vec![
            service("default", "kubernetes", "10.96.0.1"),
            service("shop", "cart-db", "fd96::5"),
            service("shop", "headless", "None"),
            service("other", "far", "10.96.0.9"),
        ],
    }
}

#[track_caller]
fn check(container: Value, expected: Result<&[(&str, &str)], &str>) {
    let mut whole = json!({ "name": "main" });
    whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let container: Container = serde_json::from_value(whole).unwrap();
    let resolved = resolve(&pod(), &container, &addresses(), &sources());
    match expected {
        Err(message) => assert_eq!(resolved, Err(message.to_owned())),
        Ok(wanted) => {
            let resolved = resolved.unwrap();
            for (name, value) in wanted {
                let found = resolved.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
                assert_eq!(found, Some(*value), "{name}");
            }
        }
    }
}

#[test]
fn references_are_expanded_as_kubernetes_does() {
    let variables = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
    let cases = [
        ("$(A)", "1"),
        ("x$(A)y$(A)z", "x1y1z"),
        ("$(NONE)", "$(NONE)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("100$", "100$"),
        // What was put in is not looked at again.
        ("$(B)", "$(A)"),
    ];
    for (text, expected) in cases {
        assert_eq!(expand(text, &variables), expected, "{text}");
    }
}

#[test]
fn later_variables_refer_to_earlier_ones_only() {
    let env = json!({ "env": [{ "name": "A", "value": "$(B)" }, { "name": "B", "value": "b" }, { "name": "C", "value": "$(B)$(A)" }] });
    check(env, Ok(&[("A", "$(B)"), ("C", "b$(B)")]));
}

#[test]
fn fields_of_the_pod() {
    let cases = [
        ("metadata.name", "web-1"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note']", "a b"),
        ("metadata.annotations", "note=\"a b\""),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "seller"),
        ("status.podIP", "10.244.0.2"),
        ("status.podIPs", "10.244.0.2,fd44::2"),
        ("status.hostIP", "10.245.0.11"),
    ];
    for (path, expected) in cases {
        assert_eq!(field(&pod(), path, &addresses()).as_deref(), Ok(expected), "{path}");
    }
    assert!(field(&pod(), "spec.colour", &addresses()).unwrap_err().contains("spec.colour"));
}

#[test]
fn config_maps_and_secrets_by_key_and_whole() {
    let by = |source: Value| json!({ "env": [{ "name": "A", "valueFrom": source }] });
    let map = |name: &str, key: &str, optional: bool| {
        by(json!({ "configMapKeyRef": { "name": name, "key": key, "optional": optional } }))
    };
    check(map("settings", "colour", false), Ok(&[("A", "red")]));
    check(map("none", "colour", false), Err("configmap \"none\" not found"));
    check(map("none", "colour", true), Ok(&[]));
    check(map("settings", "size", false), Err("couldn't find key size in configmap settings"));
    check(by(json!({ "secretKeyRef": { "name": "keys", "key": "door" } })), Ok(&[("A", "1234")]));
    check(json!({ "envFrom": [{ "prefix": "P_", "secretRef": { "name": "keys" } }] }), Ok(&[("P_door", "1234")]));
    check(json!({ "envFrom": [{ "secretRef": { "name": "none" } }] }), Err("secret \"none\" not found"));
}

#[test]
fn services_of_the_namespace_and_the_api_server_are_told() {
    let expected = [
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
        ("CART_DB_SERVICE_HOST", "fd96::5"),
        ("CART_DB_PORT_443_TCP", "tcp://[fd96::5]:443"),
    ];
    check(json!({}), Ok(&expected));
    let container: Container = serde_json::from_value(json!({ "name": "main" })).unwrap();
    let names = resolve(&pod(), &container, &addresses(), &sources()).unwrap();
    assert!(!names.iter().any(|(name, _)| name.starts_with("FAR") || name.starts_with("HEADLESS")));
    // What the container says itself wins.
    check(
        json!({ "env": [{ "name": "KUBERNETES_SERVICE_HOST", "value": "10.245.0.1" }] }),
        Ok(&[("KUBERNETES_SERVICE_HOST", "10.245.0.1")]),
    );
}

#[test]
fn resources_are_divided_and_rounded_up() {
    let of = |resource: &str, divisor: &str| {
        json!({ "resources": { "limits": { "cpu": "1500m", "memory": "64Mi" } },
            "env": [{ "name": "A", "valueFrom": { "resourceFieldRef": { "resource": resource, "divisor": divisor } } }] })
    };
    check(of("limits.cpu", "0"), Ok(&[("A", "2")]));
    check(of("limits.cpu", "1m"), Ok(&[("A", "1500")]));
    check(of("requests.memory", "1Mi"), Ok(&[("A", "64")]));
    check(of("limits.memory", "1"), Ok(&[("A", "67108864")]));
}
