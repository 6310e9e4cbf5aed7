use super::*;
use crate::watch::manifest::parse::parse;

fn rules() -> Rules {
    let nets = |text: &str| text.split(',').map(|net| net.parse().expect("a network")).collect();
    Rules {
        service_cidrs: nets("127.96.0.0/24"),
        node_ports: PortRange::new(30000..=32767),
        load_balancer_pool: nets("127.97.0.0/29"),
    }
}

fn objects(yaml: &str) -> BTreeMap<ObjectKey, Object> {
    let parsed = parse(yaml.as_bytes()).expect("the test's manifest parses");
    parsed.objects.into_iter().map(|(_, object)| (object.key(), object)).collect()
}

fn service<'a>(emulated: &'a Emulated, name: &str) -> &'a Service {
    let found = emulated.objects.iter().find(|(key, _)| key.to_string() == format!("Service default/{name}"));
    match found {
        Some((_, Object::Service(service))) => service,
        _ => panic!("no Service {name}"),
    }
}

fn problems(emulated: &Emulated) -> Vec<String> {
    let line = |(key, problems): (&ObjectKey, &Vec<Problem>)| {
        problems.iter().map(|problem| format!("{key}: {problem}")).collect::<Vec<_>>()
    };
    emulated.problems.iter().flat_map(line).collect()
}

fn cluster_ip(emulated: &Emulated, name: &str) -> String {
    service(emulated, name).spec.as_ref().and_then(|spec| spec.cluster_ip.clone()).unwrap_or_default()
}

fn node_ports(emulated: &Emulated, name: &str) -> Vec<Option<i32>> {
    let spec = service(emulated, name).spec.as_ref().expect("a spec");
    spec.ports.iter().flatten().map(|port| port.node_port).collect()
}

fn plain(name: &str, rest: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]{rest}}}\n")
}

#[test]
fn cluster_ips_stay_when_others_come_and_go_and_when_the_gateway_restarts() {
    let one = plain("a", "") + &plain("b", "");
    let mut held = Held::default();
    let before = emulate(&rules(), &objects(&one), &mut held);
    let more = one.clone() + &plain("0-first", "") + &plain("ab", "");
    let after = emulate(&rules(), &objects(&more), &mut held);
    for name in ["a", "b"] {
        assert!(cluster_ip(&before, name).starts_with("127.96.0."));
        assert_eq!(cluster_ip(&before, name), cluster_ip(&after, name));
        let restarted = emulate(&rules(), &objects(&more), &mut Held::default());
        assert_eq!(cluster_ip(&after, name), cluster_ip(&restarted, name));
    }
    let all: std::collections::BTreeSet<_> = ["a", "b", "0-first", "ab"].map(|name| cluster_ip(&after, name)).into();
    assert_eq!(all.len(), 4);
    emulate(&rules(), &objects(""), &mut held);
    assert_eq!(held, Held::default(), "nothing is held for what is gone");
}

#[test]
fn a_full_range_serves_the_others_and_says_so() {
    let few = Rules { service_cidrs: vec!["10.0.0.0/30".parse().expect("a network")], ..rules() };
    let three = plain("a", "") + &plain("b", "") + &plain("c", "");
    let emulated = emulate(&few, &objects(&three), &mut Held::default());
    assert_eq!(
        problems(&emulated),
        ["Service default/c: CLUSTER_IP_EXHAUSTED: no IPv4 ClusterIP: --service-cidr has no free address left"]
    );
    assert_eq!(cluster_ip(&emulated, "c"), "");
}

#[test]
fn a_cluster_ip_that_cannot_be_had_is_replaced_and_reported() {
    let text = plain("a", ", clusterIP: 127.96.0.9")
        + &plain("b", ", clusterIP: 127.96.0.9")
        + &plain("c", ", clusterIP: 10.0.0.1");
    let emulated = emulate(&rules(), &objects(&text), &mut Held::default());
    assert_eq!(cluster_ip(&emulated, "a"), "127.96.0.9");
    assert!(cluster_ip(&emulated, "b").starts_with("127.96.0."));
    assert_ne!(cluster_ip(&emulated, "b"), "127.96.0.9");
    assert_eq!(
        problems(&emulated),
        [
            "Service default/b: CLUSTER_IP_CONFLICT: spec.clusterIP 127.96.0.9 belongs to Service default/a, which is \
             older; another address was assigned",
            "Service default/c: CLUSTER_IP_CONFLICT: spec.clusterIP 10.0.0.1 is not within --service-cidr; another \
             address was assigned",
        ]
    );
}

#[test]
fn a_node_port_asked_for_twice_serves_the_older() {
    let service = |name: &str, created: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, creationTimestamp: {created}}}\n\
             spec: {{type: NodePort, ports: [{ports}]}}\n"
        )
    };
    let text = service("a", "2026-02-02T00:00:00Z", "{port: 80, nodePort: 30080}, {name: x, port: 81}")
        .replace("{port: 80,", "{name: w, port: 80,")
        + &service("b", "2026-01-01T00:00:00Z", "{port: 80, nodePort: 30080}")
        + &service("c", "2026-01-03T00:00:00Z", "{port: 53, nodePort: 30080, protocol: UDP}")
        + &service("d", "2026-01-03T00:00:00Z", "{port: 80, nodePort: 80}");
    let emulated = emulate(&rules(), &objects(&text), &mut Held::default());
    assert_eq!(node_ports(&emulated, "b"), [Some(30080)]);
    assert_eq!(node_ports(&emulated, "c"), [Some(30080)], "UDP has numbers of its own");
    let of_a = node_ports(&emulated, "a");
    assert_eq!(of_a[0], None);
    assert!(of_a[1].is_some_and(|port| (30086..=32767).contains(&port)), "automatic ports come from the upper band");
    assert_eq!(
        problems(&emulated),
        [
            "Service default/a: NODE_PORT_CONFLICT: nodePort of port \"w\" 30080 belongs to Service default/b, which is older",
            "Service default/d: NODE_PORT_CONFLICT: nodePort 80 is not within --node-port-range 30000-32767",
        ]
    );
}

#[test]
fn load_balancers_get_addresses_node_ports_and_a_health_check_port() {
    let text = plain("a", ", type: LoadBalancer, externalTrafficPolicy: Local")
        + &plain("b", ", type: LoadBalancer, loadBalancerIP: 127.97.0.0, allocateLoadBalancerNodePorts: false")
        + &plain("c", ", type: LoadBalancer, loadBalancerIP: 127.97.0.0")
        + &plain("d", ", type: LoadBalancer, loadBalancerClass: example.com/other");
    let emulated = emulate(&rules(), &objects(&text), &mut Held::default());
    let address = |name: &str| {
        let status = service(&emulated, name).status.clone().unwrap_or_default();
        let ingress = status.load_balancer.and_then(|status| status.ingress).unwrap_or_default();
        ingress.into_iter().filter_map(|ingress| ingress.ip).collect::<Vec<_>>()
    };
    assert_eq!(address("a"), ["127.97.0.1"], "the lowest that nobody asked for");
    assert_eq!(address("b"), ["127.97.0.0"]);
    assert_eq!(address("c"), Vec::<String>::new());
    assert_eq!(address("d"), Vec::<String>::new());
    let health_check = |name: &str| service(&emulated, name).spec.as_ref().and_then(|spec| spec.health_check_node_port);
    assert!(health_check("a").is_some() && health_check("b").is_none());
    assert_eq!(node_ports(&emulated, "b"), [None]);
    assert_eq!(
        problems(&emulated),
        [
            "Service default/c: LOAD_BALANCER_IP_CONFLICT: no load-balancer address is assigned: asks for 127.97.0.0, which \
          belongs to Service default/b; to share it both need the same portico.dev/allow-shared-ip, different ports, and \
          externalTrafficPolicy Cluster or the same selector"
        ]
    );
}

#[test]
fn slices_follow_selectors_readiness_and_named_ports() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  trafficDistribution: PreferSameNode
  ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81, targetPort: 9000}]
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web, extra: x}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 127.10.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}, deletionTimestamp: '2026-01-01T00:00:00Z'}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}
status: {podIP: 127.10.0.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: three, labels: {app: web}}
spec: {containers: [{name: c}]}
status: {podIP: 127.10.0.3, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, labels: {app: web}}
spec: {containers: []}
status: {podIP: 127.10.0.4, phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: other}}
spec: {containers: []}
status: {podIP: 127.10.0.5}
";
    let emulated = emulate(&rules(), &objects(text), &mut Held::default());
    let mut lines = Vec::new();
    for object in emulated.objects.values() {
        let Object::EndpointSlice(slice) = object else { continue };
        let ports: Vec<_> = slice.ports.iter().flatten().map(|port| (port.name.clone(), port.port)).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            lines.push(format!(
                "{} {} {:?} {:?} {:?} {:?} {:?} {}",
                endpoint.addresses.join(","),
                ports
                    .iter()
                    .map(|(name, port)| format!("{}={}", name.as_deref().unwrap_or("-"), port.unwrap_or(0)))
                    .collect::<Vec<_>>()
                    .join(","),
                conditions.ready,
                conditions.serving,
                conditions.terminating,
                endpoint.node_name,
                endpoint.zone,
                endpoint.hints.as_ref().map_or(0, |hints| hints.for_nodes.iter().flatten().count()),
            ));
        }
    }
    lines.sort();
    assert_eq!(
        lines,
        [
            "127.10.0.1 http=8080,admin=9000 Some(true) Some(true) Some(false) Some(\"n1\") Some(\"z1\") 1",
            "127.10.0.2 http=8081,admin=9000 Some(false) Some(true) Some(true) None None 0",
            "127.10.0.3 admin=9000 Some(false) Some(false) Some(false) None None 0",
        ]
    );
}

#[test]
fn endpoints_are_mirrored_for_services_without_a_selector_only() {
    let endpoints = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets:\n\
             - addresses: [{{ip: 127.11.0.1}}, {{ip: 'fd00::1'}}]\n  notReadyAddresses: [{{ip: 127.11.0.2}}]\n  ports: [{{port: 90}}]\n"
        )
    };
    let text = plain("manual", "")
        + &plain("selected", ", selector: {app: x}")
        + &endpoints("manual")
        + &endpoints("selected")
        + &endpoints("alone");
    let emulated = emulate(&rules(), &objects(&text), &mut Held::default());
    let slices: Vec<_> =
        emulated.objects.keys().filter(|key| key.kind == crate::watch::object::Kind::EndpointSlice).collect();
    let names: Vec<_> = slices.iter().map(|key| key.to_string()).collect();
    assert_eq!(names, ["EndpointSlice default/manual_ipv4_mirrored-0", "EndpointSlice default/manual_ipv6_mirrored-0"]);
}

#[test]
fn what_the_api_server_would_refuse_is_reported_and_the_rest_served() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  type: Nodeport
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}
  internalTrafficPolicy: local
  ports: [{name: a, port: 80}, {name: b, port: 70000}, {name: a, port: 81}, {port: 82}, {name: c, port: 80}, {name: u, port: 80, protocol: UDP}]
";
    let emulated = emulate(&rules(), &objects(text), &mut Held::default());
    let reasons: Vec<_> = emulated.problems.values().flatten().map(|problem| problem.reason).collect();
    assert_eq!(
        reasons,
        [
            "INVALID_TYPE",
            "INVALID_PORT",
            "INVALID_PORT",
            "INVALID_PORT",
            "INVALID_PORT",
            "INVALID_AFFINITY",
            "INVALID_TRAFFIC_POLICY"
        ]
    );
    let spec = service(&emulated, "a").spec.as_ref().expect("a spec");
    let ports: Vec<_> = spec.ports.iter().flatten().map(|port| port.name.clone().unwrap_or_default()).collect();
    assert_eq!(ports, ["a", "u"]);
}

#[test]
fn families_follow_the_ranges_and_the_policy() {
    let dual = Rules {
        service_cidrs: vec!["127.96.0.0/24".parse().expect("a network"), "fd00::/112".parse().expect("a network")],
        ..rules()
    };
    let text = plain("single", "")
        + &plain("dual", ", ipFamilyPolicy: PreferDualStack")
        + &plain("six", ", ipFamilies: [IPv6]")
        + &plain("headless", ", clusterIP: None");
    let emulated = emulate(&dual, &objects(&text), &mut Held::default());
    let families = |name: &str| {
        let spec = service(&emulated, name).spec.as_ref().expect("a spec");
        let of = |address: &String| if address.contains(':') { 6 } else { 4 };
        spec.cluster_ips.iter().flatten().map(of).collect::<Vec<_>>()
    };
    assert_eq!(families("single"), [4]);
    assert_eq!(families("dual"), [4, 6]);
    assert_eq!(families("six"), [6]);
    assert_eq!(families("headless"), Vec::<i32>::new());
    assert_eq!(cluster_ip(&emulated, "headless"), "None");
    assert_eq!(problems(&emulated), Vec::<String>::new());
}
