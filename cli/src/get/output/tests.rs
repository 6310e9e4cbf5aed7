use super::*;
use crate::get::show::{self, Item, Key};
use crate::get::{services_table, show_all};
use api::proto::discovery::{
    AppProtocol, Balancing, BalancingPolicy, Endpoint, EndpointPort, Node, Service, ServicePort, ServiceType,
    TrafficPolicy, Transport,
};
use api::proto::health::{Health, HealthState, NodeHealth};
use api::proto::inspect::{AgentState, NodeState, Object, ObjectKey, Problem, object};
use api::proto::node::NodeServingState;
use prost_types::Timestamp;
use std::time::{Duration, SystemTime};

/// 2026-01-01T00:00:00Z.
const CREATED: i64 = 1_767_225_600;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(CREATED as u64 + 190)
}

fn time(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn object(namespace: &str, name: &str, kind: object::Kind) -> Object {
    Object {
        key: Some(ObjectKey { namespace: namespace.into(), name: name.into() }),
        create_time: time(CREATED),
        problems: Vec::new(),
        kind: Some(kind),
    }
}

fn service(namespace: &str, name: &str, kind: ServiceType, change: impl FnOnce(&mut Service)) -> Object {
    let mut service = Service {
        namespace: namespace.into(),
        name: name.into(),
        r#type: kind.into(),
        internal_traffic_policy: TrafficPolicy::Cluster.into(),
        ..Default::default()
    };
    change(&mut service);
    object(namespace, name, object::Kind::Service(service))
}

fn port(name: &str, transport: Transport, port: u32, node_port: u32, app_protocol: AppProtocol) -> ServicePort {
    ServicePort {
        name: name.into(),
        transport: transport.into(),
        port,
        node_port,
        app_protocol: app_protocol.into(),
        ..Default::default()
    }
}

fn services() -> Vec<Object> {
    vec![
        service("default", "web", ServiceType::NodePort, |service| {
            service.cluster_ips = vec!["10.96.0.10".into(), "fd00::10".into()];
            service.ports = vec![
                port("http", Transport::Tcp, 80, 30080, AppProtocol::Http),
                port("dns", Transport::Udp, 53, 0, AppProtocol::Unspecified),
            ];
            service.external_traffic_policy = TrafficPolicy::Local.into();
            service.affinity_seconds = 10_800;
            service.balancing = Some(Balancing { policy: BalancingPolicy::HeaderHash.into(), key: "x-user".into() });
        }),
        service("default", "db", ServiceType::Headless, |_| {}),
        service("default", "ext", ServiceType::ExternalName, |service| service.external_name = "db.example".into()),
        service("default", "lb", ServiceType::LoadBalancer, |service| {
            service.cluster_ips = vec!["10.96.0.11".into()];
            service.load_balancer_ips = vec!["192.0.2.1".into()];
            service.external_ips = vec!["198.51.100.1".into()];
            service.ports = vec![port("", Transport::Tcp, 443, 30443, AppProtocol::Tls)];
        }),
        service("default", "waits", ServiceType::LoadBalancer, |service| {
            service.cluster_ips = vec!["10.96.0.12".into()];
        }),
    ]
}

fn endpoint(address: &str, ready: bool, terminating: bool) -> Object {
    let endpoint = Endpoint {
        namespace: "default".into(),
        service: "web".into(),
        address: address.into(),
        ports: vec![EndpointPort { name: "http".into(), transport: Transport::Tcp.into(), port: 8080 }],
        ready,
        serving: ready || terminating,
        terminating,
        node: "one".into(),
        zone: "a".into(),
        hint_zones: vec!["a".into()],
        weight: 1,
        pod: "web-0".into(),
        ..Default::default()
    };
    object("default", &format!("web/ipv4/{address}"), object::Kind::Endpoint(endpoint))
}

fn shown(kind: Kind, objects: Vec<Object>) -> Vec<Shown> {
    show_all(kind, objects.into_iter().map(|object| Item::Object(Box::new(object))).collect(), now())
}

fn layout(kind: Kind, format: Format) -> Layout {
    Layout { kind, format, namespaces: false, single: false }
}

#[test]
fn services_look_as_in_kubectl() {
    let expected = "\
NAME    TYPE           CLUSTER-IP   EXTERNAL-IP              PORT(S)               AGE
db      ClusterIP      None         <none>                   <none>                3m10s
ext     ExternalName   <none>       db.example               <none>                3m10s
lb      LoadBalancer   10.96.0.11   192.0.2.1,198.51.100.1   443:30443/TCP         3m10s
waits   LoadBalancer   10.96.0.12   <pending>                <none>                3m10s
web     NodePort       10.96.0.10   <none>                   80:30080/TCP,53/UDP   3m10s
";
    assert_eq!(services_table(&services(), false, now()), expected);
    assert_eq!(services_table(&[], false, now()), "");
}

#[test]
fn wide_columns_come_last_and_namespaces_first() {
    let mut objects = services();
    objects.retain(|object| object.key.as_ref().unwrap().name == "web");
    let mut other = service("shop", "web", ServiceType::ClusterIp, |service| {
        service.cluster_ips = vec!["10.96.0.13".into()];
        service.ports = vec![port("", Transport::Tcp, 9, 0, AppProtocol::Grpc)];
    });
    other.create_time = None;
    objects.push(other);
    let expected = "\
NAMESPACE   NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)               AGE         PROTOCOL   EXTERNAL-POLICY   INTERNAL-POLICY   AFFINITY      BALANCING
default     web    NodePort    10.96.0.10   <none>        80:30080/TCP,53/UDP   3m10s       http,udp   Local             Cluster           ClientIP/3h   header-hash:x-user
shop        web    ClusterIP   10.96.0.13   <none>        9/TCP                 <unknown>   grpc       <none>            Cluster           None          <none>
";
    assert_eq!(services_table(&objects, true, now()), expected);
}

#[test]
fn a_service_has_the_fields_of_kubernetes() {
    let all = shown(Kind::Services, services());
    let web = all.iter().find(|shown| shown.key.name == "web").unwrap();
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "web",
            "namespace": "default",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"portico.dev/balancing": "header-hash:x-user"},
        },
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00::10"],
            "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Cluster",
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080, "appProtocol": "http"},
                {"name": "dns", "protocol": "UDP", "port": 53},
            ],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
        },
    });
    assert_eq!(web.document, expected);
    let spec = |name: &str| all.iter().find(|shown| shown.key.name == name).unwrap().document["spec"].clone();
    assert_eq!((&spec("db")["clusterIP"], &spec("db")["type"]), (&json!("None"), &json!("ClusterIP")));
    assert_eq!(spec("ext")["externalName"], "db.example");
    let lb = all.iter().find(|shown| shown.key.name == "lb").unwrap();
    let ingress = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]);
    assert_eq!(lb.document["status"]["loadBalancer"]["ingress"], ingress);
}

#[test]
fn documents_are_lists_unless_one_was_asked_for() {
    let one = shown(Kind::Services, vec![service("default", "db", ServiceType::Headless, |_| {})]);
    let list = text(layout(Kind::Services, Format::Json), &one);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&json!("List"), &json!("db")));
    let empty: Value = serde_json::from_str(&text(layout(Kind::Services, Format::Json), &[])).unwrap();
    assert_eq!(empty, json!({"kind": "List", "items": []}));

    let single = Layout { single: true, ..layout(Kind::Services, Format::Json) };
    let document: Value = serde_json::from_str(&text(single, &one)).unwrap();
    assert_eq!(document, one[0].document);
    let yaml = text(Layout { format: Format::Yaml, ..single }, &one);
    let document: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(document, one[0].document, "{yaml}");
}

#[test]
fn endpoints_are_shown_by_service() {
    let addresses = ["10.0.0.10", "10.0.0.9", "10.0.0.1", "10.0.0.2"];
    let mut objects: Vec<Object> = addresses.map(|address| endpoint(address, true, false)).into();
    objects.push(endpoint("10.0.0.3", false, true));
    let all = shown(Kind::Endpoints, objects);
    let expected = "\
NAME   ENDPOINTS                                               AGE     NOT-READY   TERMINATING   NODES
web    10.0.0.1:8080,10.0.0.2:8080,10.0.0.9:8080 + 1 more...   3m10s   1           1             one
";
    assert_eq!(text(layout(Kind::Endpoints, Format::Wide), &all), expected);
    let document = &all[0].document;
    assert_eq!(document["metadata"]["name"], "web");
    let expected = json!({
        "addresses": ["10.0.0.3"],
        "conditions": {"ready": false, "serving": true, "terminating": true},
        "hints": {"forZones": [{"name": "a"}]},
        "nodeName": "one",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "default"},
        "weight": 1,
        "zone": "a",
    });
    assert_eq!(document["endpoints"][2], expected);
}

#[test]
fn nodes_agents_and_health_have_their_columns() {
    let node = Node {
        name: "one".into(),
        internal_addresses: vec!["127.0.1.1".into()],
        zone: "a".into(),
        leaving: true,
        ..Default::default()
    };
    let state = NodeState { node: Some(node), agent_connected: true, health: "Healthy".into() };
    let nodes = shown(Kind::Nodes, vec![object("", "one", object::Kind::Node(state))]);
    let expected = "\
NAME   STATUS            AGENT       ZONE   INTERNAL-IP   AGE
one    Healthy,Leaving   connected   a      127.0.1.1     3m10s
";
    assert_eq!(text(layout(Kind::Nodes, Format::Table), &nodes), expected);
    assert_eq!(nodes[0].document["status"]["addresses"], json!([{"type": "InternalIP", "address": "127.0.1.1"}]));

    let agent = AgentState {
        node: "one".into(),
        connected: true,
        state: NodeServingState::Serving.into(),
        acknowledged_resources: 12,
        connect_time: time(CREATED),
        version: "0.1.0".into(),
        ..Default::default()
    };
    let agents = shown(Kind::Agents, vec![object("", "one", object::Kind::Agent(agent))]);
    let expected = "\
NAME   STATE     CONNECTED   BEHIND   RESOURCES   REJECTED   LISTENERS   FAULTS   VERSION   AGE
one    Serving   yes         0        12          0          0           0        0.1.0     3m10s
";
    assert_eq!(text(layout(Kind::Agents, Format::Table), &agents), expected);

    let health = Health {
        state: HealthState::Draining.into(),
        reason: "NODE_DRAINING".into(),
        state_since: time(CREATED),
        expire_time: time(CREATED + 200),
        ..Default::default()
    };
    let health = NodeHealth { name: "nodes/one".into(), health: Some(health), ..Default::default() };
    let health = show_all(Kind::Health, vec![Item::Health(Box::new(health))], now());
    let expected = "\
NAME   STATE      REASON          WEIGHT   ZONE     SINCE   EXPIRES   ADDRESSES   MESSAGE
one    Draining   NODE_DRAINING   0        <none>   3m10s   10s       <none>      <none>
";
    assert_eq!(text(layout(Kind::Health, Format::Wide), &health), expected);
}

#[test]
fn problems_become_warnings_with_their_subject() {
    let mut object = service("default", "web", ServiceType::ClusterIp, |_| {});
    object.problems = vec![Problem { reason: "NODE_PORT_TAKEN".into(), message: "30080 is in use".into() }];
    let all = shown(Kind::Services, vec![object]);
    assert_eq!(all[0].warnings, ["services default/web: NODE_PORT_TAKEN: 30080 is in use"]);
}

#[test]
fn what_is_of_another_kind_is_not_shown() {
    let item = Item::Object(Box::new(service("default", "web", ServiceType::ClusterIp, |_| {})));
    let key = Key { namespace: "default".into(), name: "web".into() };
    for kind in [Kind::Endpoints, Kind::Nodes, Kind::Agents, Kind::Health] {
        assert_eq!(show::show(kind, &key, std::iter::once(&item), now()), None);
    }
}

#[test]
fn a_watch_says_what_happened() {
    let web = shown(Kind::Services, vec![service("default", "web", ServiceType::ClusterIp, |_| {})]);
    let long = shown(Kind::Services, vec![service("default", "longer-name", ServiceType::ClusterIp, |_| {})]);
    let mut out = Vec::new();
    let mut printer = Printer::new(layout(Kind::Services, Format::Table), &mut out);
    printer.start(&web).unwrap();
    printer.event(Event::Added, &long[0]).unwrap();
    printer.event(Event::Deleted, &web[0]).unwrap();
    let expected = "\
EVENT      NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
ADDED      web    ClusterIP   <none>       <none>        <none>    3m10s
ADDED      longer-name   ClusterIP   <none>       <none>        <none>    3m10s
DELETED    web           ClusterIP   <none>       <none>        <none>    3m10s
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);

    let mut out = Vec::new();
    let mut printer = Printer::new(layout(Kind::Services, Format::Json), &mut out);
    printer.start(&web).unwrap();
    printer.event(Event::Modified, &web[0]).unwrap();
    let lines: Vec<Value> = out
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines[0], json!({"type": "ADDED", "object": web[0].document}));
    assert_eq!(lines[1], json!({"type": "MODIFIED", "object": web[0].document}));
}
