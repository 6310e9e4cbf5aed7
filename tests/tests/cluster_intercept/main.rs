//! Interception on packets: nodes, Pods and a client outside, in network namespaces of their own. Needs root.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use lab::{Lab, Place};
use probe::{Answer, Ask};

mod lab;
mod probe;

/// ClusterIPs of the manifests, by their last number.
mod service {
    pub const NEAR: u16 = 1;
    pub const FAR: u16 = 2;
    pub const NOBODY: u16 = 3;
    pub const FAR_INTERNAL: u16 = 7;
    pub const NEAR_KEEP: u16 = 8;
    pub const CIRCLE: u16 = 10;
    /// A ClusterIP that no Service has.
    pub const NONE: u16 = 99;
}

/// Node ports of the manifests; HTTP is at the next one.
mod node_port {
    pub const NEAR: u16 = 30_100;
    pub const NEAR_LOCAL: u16 = 30_110;
    pub const FAR_LOCAL: u16 = 30_120;
    pub const CIRCLE: u16 = 30_130;
}

/// Services that come and go at once.
const MANY: u16 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// Whom an endpoint sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Client,
    Node,
}

fn cluster_ip(family: Family, service: u16, port: u16) -> SocketAddr {
    match family {
        Family::Ipv4 => SocketAddr::from(([10, 96, 0, service as u8], port)),
        Family::Ipv6 => format!("[fd96::{service}]:{port}").parse().expect("an address"),
    }
}

fn address(place: Place, family: Family) -> IpAddr {
    let (ipv4, ipv6) = place.addresses();
    let text = if family == Family::Ipv4 { ipv4 } else { ipv6 };
    text.parse().expect("an address")
}

fn on_node(place: Place, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(address(place, family), port)
}

/// Asks by TCP and UDP, and compares whom the endpoint saw.
fn check_seen(lab: &Lab, from: Place, destination: SocketAddr, family: Family, expected: Seen) {
    for ask in [Ask::Tcp(destination), Ask::Udp(destination)] {
        check_ask_seen(lab, from, ask, family, expected);
    }
}

fn check_ask_seen(lab: &Lab, from: Place, ask: Ask, family: Family, expected: Seen) {
    let answer = lab.ask(from, ask);
    let seen = answer.seen().unwrap_or_else(|| panic!("{from:?} {ask:?}: {answer:?}"));
    let client = address(from, family).to_string();
    let node = address(Place::Node1, family).to_string();
    let expected = if expected == Seen::Client { client } else { node };
    assert_eq!(seen, expected, "{from:?} {ask:?}");
}

fn check(lab: &Lab, from: Place, ask: Ask, expected: &Answer) {
    assert_eq!(lab.ask(from, ask), *expected, "{from:?} {ask:?}");
}

/// S6, for endpoints on the entry node and on the other one.
#[tokio::test]
async fn endpoints_see_whom_they_should() {
    let lab = Lab::start(&[]).await;
    for family in FAMILIES {
        let near = cluster_ip(family, service::NEAR, 80);
        let far = cluster_ip(family, service::FAR, 80);
        check_seen(&lab, Place::ClientPod, near, family, Seen::Client);
        check_seen(&lab, Place::ClientPod, far, family, Seen::Client);
        // An endpoint that reaches itself.
        check_seen(&lab, Place::Pod, near, family, Seen::Node);
        check_seen(&lab, Place::Node1, near, family, Seen::Node);
        check_seen(&lab, Place::Node1, far, family, Seen::Node);
        check_seen(&lab, Place::Outside, near, family, Seen::Client);
        // Its answers go past this node, and nobody hands connections over here.
        check_seen(&lab, Place::Outside, far, family, Seen::Node);

        let everywhere = on_node(Place::Node1, family, node_port::NEAR);
        let local = on_node(Place::Node1, family, node_port::NEAR_LOCAL);
        check_seen(&lab, Place::ClientPod, everywhere, family, Seen::Client);
        check_seen(&lab, Place::Outside, everywhere, family, Seen::Client);
        check_seen(&lab, Place::Node1, everywhere, family, Seen::Node);
        check_seen(&lab, Place::Outside, local, family, Seen::Client);
        check_seen(&lab, Place::ClientPod, local, family, Seen::Client);
        check_seen(&lab, Place::Node1, local, family, Seen::Node);
        // Short-circuited to the other node (S5.3).
        let elsewhere = on_node(Place::Node1, family, node_port::FAR_LOCAL);
        check_seen(&lab, Place::ClientPod, elsewhere, family, Seen::Client);
        check_seen(&lab, Place::Node1, elsewhere, family, Seen::Node);

        // Requests share connections where nothing is promised, unless the Service says otherwise.
        let promised = Ask::Http(cluster_ip(family, service::NEAR, 8080));
        check_ask_seen(&lab, Place::ClientPod, promised, family, Seen::Client);
        check_ask_seen(&lab, Place::Outside, promised, family, Seen::Node);
        let kept = Ask::Http(cluster_ip(family, service::NEAR_KEEP, 8080));
        check_ask_seen(&lab, Place::ClientPod, kept, family, Seen::Client);
        check_ask_seen(&lab, Place::Outside, kept, family, Seen::Client);
        check_ask_seen(&lab, Place::ClientPod, kept, family, Seen::Client);
    }
}

/// S5 and S7, by what clients get.
#[tokio::test]
async fn packets_are_judged_before_anybody_accepts() {
    let lab = Lab::start(&[]).await;
    for family in FAMILIES {
        let nobody = cluster_ip(family, service::NOBODY, 80);
        let other_port = cluster_ip(family, service::NEAR, 81);
        for from in [Place::ClientPod, Place::Node1, Place::Outside] {
            for destination in [nobody, other_port] {
                check(&lab, from, Ask::Tcp(destination), &Answer::Refused);
                check(&lab, from, Ask::Udp(destination), &Answer::Refused);
            }
            let internal = cluster_ip(family, service::FAR_INTERNAL, 80);
            check(&lab, from, Ask::Tcp(internal), &Answer::Silence);
            check(&lab, from, Ask::Udp(internal), &Answer::Silence);
            check(&lab, from, Ask::Tcp(cluster_ip(family, service::NONE, 80)), &Answer::Silence);
        }
        let elsewhere = on_node(Place::Node1, family, node_port::FAR_LOCAL);
        check(&lab, Place::Outside, Ask::Tcp(elsewhere), &Answer::Silence);
        check(&lab, Place::Outside, Ask::Udp(elsewhere), &Answer::Silence);

        let guarded: SocketAddr = match family {
            Family::Ipv4 => "10.97.0.0:80",
            Family::Ipv6 => "[fd97::]:80",
        }
        .parse()
        .expect("an address");
        check_seen(&lab, Place::ClientPod, guarded, family, Seen::Client);
        for from in [Place::Outside, Place::Node1] {
            check(&lab, from, Ask::Tcp(guarded), &Answer::Silence);
            check(&lab, from, Ask::Udp(guarded), &Answer::Silence);
        }
        // HTTP ports say why.
        let answer = lab.ask(Place::ClientPod, Ask::Http(cluster_ip(family, service::NOBODY, 8080)));
        assert!(matches!(&answer, Answer::Other(text) if text.contains("NO_ENDPOINTS")), "{answer:?}");
    }
}

/// What the agent dials is not caught again, whatever address an endpoint has: here it is a port that nobody listens on.
#[tokio::test]
async fn own_connections_go_no_circle() {
    let lab = Lab::start(&[]).await;
    for from in [Place::ClientPod, Place::Node1, Place::Outside] {
        for destination in
            [cluster_ip(Family::Ipv4, service::CIRCLE, 80), on_node(Place::Node1, Family::Ipv4, node_port::CIRCLE)]
        {
            check(&lab, from, Ask::Tcp(destination), &Answer::Refused);
        }
    }
    check_seen(&lab, Place::ClientPod, cluster_ip(Family::Ipv4, service::NEAR, 80), Family::Ipv4, Seen::Client);
}

/// Somebody else's `nft flush ruleset` is repaired, and an open connection outlives it.
#[tokio::test]
async fn flushed_rules_come_back() {
    let lab = Lab::start(&[]).await;
    let near = cluster_ip(Family::Ipv4, service::NEAR, 80);
    let mut open = probe::connect(&lab.namespace(Place::ClientPod), near);
    lab.must(Place::Node1, "nft", &["flush", "ruleset"]);
    lab.must(Place::Node1, "ip", &["rule", "del", "pref", "80"]);
    lab.until("the rules are installed again", || lab.has_rules(Place::Node1)).await;
    check_seen(&lab, Place::ClientPod, near, Family::Ipv4, Seen::Client);
    probe::speak(&mut open, b"again\n").expect("the connection lives");

    // Rules that are there but empty are no rules.
    lab.must(Place::Node1, "nft", &["flush", "chain", "inet", "portico", "prerouting"]);
    let rules = || lab.must(Place::Node1, "nft", &["list", "chain", "inet", "portico", "prerouting"]);
    lab.until("the chain is filled again", || rules().contains("vmap")).await;
    check_seen(&lab, Place::ClientPod, near, Family::Ipv4, Seen::Client);
}

/// Draining goes on to serve clients that have nobody else, lets connections finish, and leaves nothing behind.
#[tokio::test]
async fn a_drain_serves_to_its_end_and_leaves_nothing_behind() {
    let mut lab = Lab::start(&[]).await;
    let near = cluster_ip(Family::Ipv4, service::NEAR, 80);
    let mut clients = [Place::ClientPod, Place::Node1].map(|from| probe::connect(&lab.namespace(from), near));
    lab.stop_agent(Place::Node1);
    lab.until("the agent drains", || !lab.is_ready(Place::Node1)).await;
    for from in [Place::ClientPod, Place::Node1, Place::Outside] {
        let answer = lab.ask(from, Ask::Tcp(near));
        assert!(answer.seen().is_some(), "{from:?}: {answer:?}");
    }
    for client in &mut clients {
        probe::speak(client, b"still here\n").expect("an open connection goes on");
    }
    for client in &mut clients {
        client.flush().expect("it is open");
    }
    drop(clients);
    lab.until_agent_ended(Place::Node1).await;
    assert!(!lab.has_rules(Place::Node1));
    for family in ["-4", "-6"] {
        assert_eq!(lab.must(Place::Node1, "ip", &[family, "rule", "show", "pref", "80"]), "");
        let (_, routes) = lab.output(Place::Node1, "ip", &[family, "route", "show", "table", "20560"]);
        assert_eq!(routes, "");
        assert_eq!(lab.must(Place::Node1, "ip", &[family, "route", "show", "proto", "80"]), "");
    }
}

/// After a crash the rules are inert, and the next agent serves.
#[tokio::test]
async fn a_crash_is_survived() {
    let mut lab = Lab::start(&[]).await;
    let near = cluster_ip(Family::Ipv4, service::NEAR, 80);
    lab.kill_agent(Place::Node1);
    // Not refused while an agent may be about to start.
    check(&lab, Place::ClientPod, Ask::Tcp(near), &Answer::Silence);
    let alive = || lab.must(Place::Node1, "nft", &["list", "set", "inet", "portico", "alive"]);
    lab.until("the rules are inert", || !alive().contains("elements")).await;
    // Somebody else may serve the address now.
    let (ipv4, _) = Place::Node1.addresses();
    assert_eq!(
        lab.ask(Place::Outside, Ask::Tcp(format!("{ipv4}:30100").parse().expect("an address"))),
        Answer::Refused
    );
    lab.start_agent(Place::Node1, &[]);
    lab.until_ready(Place::Node1).await;
    check_seen(&lab, Place::ClientPod, near, Family::Ipv4, Seen::Client);
}

/// Rules that are to be kept hold new connections until the next agent is there.
#[tokio::test]
async fn kept_rules_hold_connections_for_the_next_agent() {
    let mut lab = Lab::start(&["--intercept-on-exit", "keep"]).await;
    let near = cluster_ip(Family::Ipv4, service::NEAR, 80);
    lab.stop_agent(Place::Node1);
    lab.until_agent_ended(Place::Node1).await;
    assert!(lab.has_rules(Place::Node1));
    check(&lab, Place::ClientPod, Ask::Tcp(cluster_ip(Family::Ipv4, service::NOBODY, 80)), &Answer::Refused);
    let (namespace, patience) = (lab.namespace(Place::ClientPod), Duration::from_secs(60));
    let waiting = thread::spawn(move || probe::connect_within(&namespace, near, patience));
    check(&lab, Place::ClientPod, Ask::Tcp(near), &Answer::Silence);
    lab.start_agent(Place::Node1, &["--intercept-on-exit", "keep"]);
    lab.until_ready(Place::Node1).await;
    let held = waiting.join().expect("a probe does not panic");
    held.expect("a client that began to connect while there was no agent is served by the next one");
    check_seen(&lab, Place::ClientPod, near, Family::Ipv4, Seen::Client);
}

/// Thousands of Services come and go, and the rules follow; an open connection does not notice.
#[tokio::test]
async fn thousands_of_services_come_and_go() {
    let lab = Lab::start(&[]).await;
    let near = cluster_ip(Family::Ipv4, service::NEAR, 80);
    let mut open = probe::connect(&lab.namespace(Place::ClientPod), near);
    let few = lab.destinations(Place::Node1);
    let service = |number: u16| {
        let [high, low] = number.to_be_bytes();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: many-{number}}}\nspec: {{clusterIP: 10.96.{}.{low}, \
             selector: {{app: near}}, ports: [{{name: raw, port: 80, targetPort: raw}}]}}\n---\n",
            100 + high
        )
    };
    lab.write("many.yaml", &(0..MANY).map(service).collect::<String>());
    let all = few + usize::from(MANY);
    lab.until("all have rules", || lab.destinations(Place::Node1) == all).await;
    let [high, low] = (MANY - 1).to_be_bytes();
    let last = SocketAddr::from(([10, 96, 100 + high, low], 80));
    check_ask_seen(&lab, Place::ClientPod, Ask::Tcp(last), Family::Ipv4, Seen::Client);
    probe::speak(&mut open, b"still here\n").expect("the connection lives");

    lab.write("many.yaml", &service(0));
    lab.until("one is left", || lab.destinations(Place::Node1) == few + 1).await;
    check(&lab, Place::ClientPod, Ask::Tcp(last), &Answer::Silence);
    check_seen(&lab, Place::ClientPod, near, Family::Ipv4, Seen::Client);
    probe::speak(&mut open, b"still here\n").expect("the connection lives");
}
