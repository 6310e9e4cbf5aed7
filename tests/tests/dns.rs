//! DNS as clients use it: dig over both transports, and lookups as the C library of a Pod makes them.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use tests::{manifests::node, net::Net, resolver::Resolver, stack::Stack, upstream};

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: prod}
spec: {clusterIP: 127.N.96.10, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: theirs, namespace: prod, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {clusterIP: 127.N.96.11, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: prod}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: site, namespace: prod}
spec: {type: ExternalName, externalName: www.example.test}
---
";

/// A slice of `db` with so many ready endpoints, of which the first has the host name `db-0`.
fn slice(count: u8) -> String {
    let mut text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: db-1, namespace: prod, \
                    labels: {kubernetes.io/service-name: db}}\nports: [{name: sql, port: 15432}]\nendpoints:\n"
        .to_owned();
    for last in 1..=count {
        let hostname = if last == 1 { ", hostname: db-0" } else { "" };
        writeln!(text, "- {{addresses: [127.N.2.{last}], conditions: {{ready: true}}{hostname}}}").expect("a string");
    }
    text + "---\n"
}

async fn stack(endpoints: u8, upstream: SocketAddr) -> Stack {
    let text = node("node-a", 1) + &node("node-b", 2) + OBJECTS + &slice(endpoints);
    Stack::start_with(&[("all.yaml", &text)], &[&format!("--dns-upstream={upstream}")]).await
}

/// The answer section that dig prints, a line for each record with its name, type and data, and the status.
async fn dig(server: SocketAddr, args: &[&str]) -> (String, BTreeSet<String>) {
    let mut command = Command::new("dig");
    command.args(["+tries=1", "+time=10", "+nocmd", "+noall", "+answer", "+comments"]);
    command.args([&format!("@{}", server.ip()), "-p", &server.port().to_string()]).args(args);
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = run.await.expect("no panic").expect("dig is there; scripts/setup test installs it");
    let text = String::from_utf8(output.stdout).expect("text");
    let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    let status = status.unwrap_or_else(|| panic!("dig {args:?} of {server} says\n{text}")).to_owned();
    let record = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        [&words[..1], &words[3..]].concat().join(" ")
    };
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
    (status, lines.map(record).collect())
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// A server that knows `www.example.test`, and says of other names that they do not exist.
fn other_server(net: &Net) -> SocketAddr {
    upstream::start(net.at("9.1", 0))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_cluster_are_answered_over_udp_and_tcp() {
    let net = Net::claim();
    let stack = stack(3, other_server(&net)).await;
    let server = stack.at("0.1", 10_053);
    for carrier in ["+notcp", "+tcp"] {
        let web = stack.net.place("web.prod.svc.cluster.local. A 127.N.96.10");
        assert_eq!(dig(server, &[carrier, "web.prod.svc.cluster.local"]).await, ("NOERROR".to_owned(), set(&[&web])));
        let theirs = stack.net.place("theirs.prod.svc.cluster.local. A 127.N.96.11");
        let asked = dig(server, &[carrier, "theirs.prod.svc.cluster.local"]).await;
        assert_eq!(asked, ("NOERROR".to_owned(), set(&[&theirs])), "whoever serves it");
        let (status, records) = dig(server, &[carrier, "_sql._tcp.db.prod.svc.cluster.local", "SRV"]).await;
        assert_eq!((status.as_str(), records.len()), ("NOERROR", 3));
        let first = "_sql._tcp.db.prod.svc.cluster.local. SRV 0 100 15432 db-0.db.prod.svc.cluster.local.";
        assert!(records.contains(first), "{records:?}");
        assert_eq!(dig(server, &[carrier, "web.nowhere.svc.cluster.local"]).await, ("NXDOMAIN".to_owned(), set(&[])));
        assert_eq!(dig(server, &[carrier, "prod.svc.cluster.local"]).await, ("NOERROR".to_owned(), set(&[])));
    }
    let (status, records) = dig(server, &["-x", &stack.ip("96.10").to_string()]).await;
    assert_eq!(status, "NOERROR");
    assert!(records.iter().all(|record| record.ends_with("PTR web.prod.svc.cluster.local.")) && records.len() == 1);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_a_datagram_comes_over_tcp() {
    let net = Net::claim();
    let stack = stack(200, other_server(&net)).await;
    let server = stack.at("0.1", 10_053);
    let name = "db.prod.svc.cluster.local";
    let (status, records) = dig(server, &["+notcp", "+ignore", "+noedns", name]).await;
    assert_eq!((status.as_str(), records.len()), ("NOERROR", 0), "truncated");
    let (status, records) = dig(server, &["+noedns", name]).await;
    assert_eq!((status.as_str(), records.len()), ("NOERROR", 200), "dig asks again over TCP");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_finds_short_names_and_names_of_the_world() {
    let net = Net::claim();
    let stack = stack(1, other_server(&net)).await;
    let server = stack.at("0.1", 10_053);
    let search = ["prod.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned);
    let resolver = Resolver { search: search.into(), ndots: 5 };
    for (typed, expected) in [
        ("web", Some("web.prod.svc.cluster.local.")),
        ("web.prod", Some("web.prod.svc.cluster.local.")),
        ("db-0.db", Some("db-0.db.prod.svc.cluster.local.")),
        ("www.example.test", Some("www.example.test.")),
        ("nobody.example.test", None),
    ] {
        let mut found = None;
        for name in resolver.candidates(typed) {
            let (status, records) = dig(server, &[&name, "A"]).await;
            if status == "NOERROR" && !records.is_empty() {
                found = Some(name);
                break;
            }
            assert!(matches!(status.as_str(), "NXDOMAIN" | "NOERROR"), "{name}: {status}");
        }
        assert_eq!(found.as_deref(), expected, "{typed}");
    }
    // What is kept of this answer is not to be seen in the spelling of the next.
    assert_eq!(dig(server, &["WWW.Example.TEST"]).await.1, set(&["WWW.Example.TEST. A 192.0.2.7"]));
    let site = "site.prod.svc.cluster.local.";
    let expected = [format!("{site} CNAME www.example.test."), "www.example.test. A 192.0.2.7".to_owned()];
    assert_eq!(dig(server, &[site]).await, ("NOERROR".to_owned(), expected.into()));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_come_and_go_are_seen() {
    let net = Net::claim();
    let stack = stack(1, other_server(&net)).await;
    let server = stack.at("0.1", 10_053);
    let name = "db.prod.svc.cluster.local";
    assert_eq!(dig(server, &[name]).await.1.len(), 1);
    for count in [3, 0] {
        let text = node("node-a", 1) + &node("node-b", 2) + OBJECTS + &slice(count);
        stack.write("all.yaml", &text);
        let expected = (if count == 0 { "NXDOMAIN" } else { "NOERROR" }, usize::from(count));
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Both agents answer at this address, so that one right answer may be followed by an old one.
            let mut answers = Vec::new();
            for _ in 0..8 {
                answers.push(dig(server, &[name]).await);
            }
            let found: Vec<_> = answers.iter().map(|(status, records)| (status.as_str(), records.len())).collect();
            if found.iter().all(|found| *found == expected) {
                break;
            }
            assert!(Instant::now() < deadline, "{found:?} instead of {expected:?}");
        }
    }
    stack.stop().await;
}
