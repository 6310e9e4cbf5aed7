//! Questions and answers as text. What Kubernetes promises is in the cases of the end-to-end tests.

use std::{collections::BTreeMap, num::NonZeroU16};

use api::resource::{
    endpoint::{Endpoint, EndpointPort},
    name::NamespacedName,
    service::{AppProtocol, Service, ServicePort, ServiceType, Transport},
};

use super::*;

fn service(name: &str, kind: ServiceType, cluster_ips: &[&str], external_name: &str) -> Service {
    Service {
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        ports: vec![ServicePort {
            name: "http".to_owned(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(80).expect("not zero"),
            node_port: None,
            protocol: AppProtocol::Opaque,
            terminate_tls: false,
        }],
        external_name: external_name.to_owned(),
        ..Service::new(NamespacedName::new("prod", name), kind)
    }
}

fn endpoint(service: &str, address: &str, hostname: &str) -> Endpoint {
    Endpoint {
        ports: vec![EndpointPort {
            name: "http".to_owned(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(8080).expect("not zero"),
        }],
        hostname: hostname.to_owned(),
        ..Endpoint::new(NamespacedName::new("prod", service), address.parse().expect("an address"))
    }
}

fn zone() -> Zone {
    let domain = Name::from_ascii("cluster.local.").expect("a name");
    let endpoints = [
        endpoint("db", "10.0.1.1", "db-0"),
        endpoint("db", "fd00::", ""),
        endpoint("web", "10.0.1.7", "front"),
        Endpoint { ready: false, ..endpoint("db", "10.0.1.9", "db-9") },
    ];
    let services = [
        service("web", ServiceType::ClusterIp, &["10.96.0.1", "fd96::1"], ""),
        service("db", ServiceType::Headless, &[], ""),
        service("gone", ServiceType::Headless, &[], ""),
        service("near", ServiceType::ExternalName, &[], "WEB.prod.svc.cluster.local"),
        service("nearer", ServiceType::ExternalName, &[], "near.prod.svc.cluster.local."),
        service("far", ServiceType::ExternalName, &[], "www.example.com"),
        service("lost", ServiceType::ExternalName, &[], "nobody.prod.svc.cluster.local"),
        service("round", ServiceType::ExternalName, &[], "round.prod.svc.cluster.local"),
        service("number", ServiceType::ExternalName, &[], "192.0.2.1"),
    ];
    let entries: BTreeMap<NamespacedName, Arc<Entry>> = services
        .iter()
        .filter_map(|service| {
            let own = endpoints.iter().filter(|endpoint| endpoint.service == service.name);
            Some((service.name.clone(), Arc::new(Entry::new(&domain, service, own)?)))
        })
        .collect();
    let ranges = ["10.96.0.0/12", "fd96::/112"].map(|range| range.parse().expect("a network"));
    Zone::new(domain, 7, ranges.into(), &entries, ["empty"])
}

/// The answer as lines: the code, then `owner TYPE data` of each record, sorted.
fn ask(name: &str, kind: RecordType) -> Vec<String> {
    let (zone, workloads) = (zone(), Map::default());
    let known = Known { zone: &zone, workloads: &workloads, pods: PodNames::Disabled, servers: &[] };
    let query = Query::query(Name::from_ascii(name).expect("a name"), kind);
    let lines = |records: &[Record]| {
        let mut lines: Vec<String> =
            records.iter().map(|r| format!("{} {} {}", r.name.to_ascii(), r.record_type(), r.data)).collect();
        lines.sort();
        lines
    };
    match answer(&query, &known, &mut Rng::with_seed(1)) {
        Answered::Here(answer) => {
            assert!(answer.authorities.iter().all(|record| record.name.zone_of(query.name())), "{answer:?}");
            let is_negative = answer.answers.iter().all(|record| record.record_type() == RecordType::CNAME);
            if is_negative && kind != RecordType::CNAME && answer.code != ResponseCode::ServFail {
                assert_eq!(answer.authorities.len(), 1, "a negative answer says for how long");
            }
            [vec![format!("{:?}", answer.code)], lines(&answer.answers)].concat()
        }
        Answered::Elsewhere(found, name) => [vec![format!("elsewhere {}", name.to_ascii())], lines(&found)].concat(),
        Answered::NotOurs => vec!["not ours".to_owned()],
    }
}

#[test]
fn the_spelling_of_the_question_is_repeated() {
    let asked = "WeB.pRoD.Svc.Cluster.LOCAL.";
    assert_eq!(ask(asked, RecordType::A), ["NoError", &format!("{asked} A 10.96.0.1")]);
    assert_eq!(ask(asked, RecordType::AAAA), ["NoError", &format!("{asked} AAAA fd96::1")]);
}

#[test]
fn aliases_are_followed_within_the_zone() {
    let (nearer, near) = ("nearer.prod.svc.cluster.local.", "near.prod.svc.cluster.local.");
    let web = "WEB.prod.svc.cluster.local.";
    let expected = [
        "NoError".to_owned(),
        format!("{web} A 10.96.0.1"),
        format!("{near} CNAME {web}"),
        format!("{nearer} CNAME {near}"),
    ];
    assert_eq!(ask(nearer, RecordType::A), expected);
    assert_eq!(ask(nearer, RecordType::CNAME), ["NoError", &format!("{nearer} CNAME {near}")]);
    let far = "far.prod.svc.cluster.local.";
    assert_eq!(ask(far, RecordType::AAAA), ["elsewhere www.example.com.", &format!("{far} CNAME www.example.com.")]);
    let lost = ask("lost.prod.svc.cluster.local.", RecordType::A);
    assert_eq!(lost[0], "NXDomain", "of the target");
    assert_eq!(lost.len(), 2);
    assert_eq!(ask("round.prod.svc.cluster.local.", RecordType::A), ["ServFail"]);
    assert_eq!(ask("number.prod.svc.cluster.local.", RecordType::A), ["NXDomain"]);
    assert_eq!(ask("x.far.prod.svc.cluster.local.", RecordType::A), ["NXDomain"]);
}

#[test]
fn headless_services_list_what_is_ready() {
    let db = "db.prod.svc.cluster.local.";
    assert_eq!(ask(db, RecordType::A), ["NoError", &format!("{db} A 10.0.1.1")]);
    assert_eq!(ask(db, RecordType::AAAA), ["NoError", &format!("{db} AAAA fd00::")]);
    let srv = "_http._tcp.db.prod.svc.cluster.local.";
    let expected =
        ["NoError".to_owned(), format!("{srv} SRV 0 100 8080 db-0.{db}"), format!("{srv} SRV 0 100 8080 fd00--0.{db}")];
    assert_eq!(ask(srv, RecordType::SRV), expected);
    assert_eq!(ask(srv, RecordType::A), ["NoError", &format!("{srv} A 10.0.1.1")]);
    let web = "_http._tcp.web.prod.svc.cluster.local.";
    assert_eq!(ask(web, RecordType::AAAA), ["NoError", &format!("{web} AAAA fd96::1")]);
    assert_eq!(ask("db-9.db.prod.svc.cluster.local.", RecordType::A), ["NXDomain"]);
    assert_eq!(ask("gone.prod.svc.cluster.local.", RecordType::A), ["NXDomain"]);
    let host = format!("db-0.{db}");
    assert_eq!(ask(&host, RecordType::SRV), ["NoError", &format!("{host} SRV 0 100 8080 {host}")]);
}

#[test]
fn names_between_others_exist() {
    for name in ["svc", "pod", "dns", "ns.dns", "prod.svc", "empty.svc", "_tcp.web.prod.svc"] {
        assert_eq!(ask(&format!("{name}.cluster.local."), RecordType::A), ["NoError"], "{name}");
    }
    let missing =
        ["x", "missing.svc", "x.web.prod.svc", "_udp.web.prod.svc", "_x._tcp.web.prod.svc", "a.b.c.web.prod.svc"];
    for name in missing {
        assert_eq!(ask(&format!("{name}.cluster.local."), RecordType::A), ["NXDomain"], "{name}");
    }
    // A dot within a label does not make two labels of it.
    assert_eq!(ask("web\\.prod.svc.cluster.local.", RecordType::A), ["NXDomain"]);
}

#[test]
fn addresses_are_called_by_their_names() {
    let web = "1.0.96.10.in-addr.arpa.";
    assert_eq!(ask(web, RecordType::PTR), ["NoError", &format!("{web} PTR web.prod.svc.cluster.local.")]);
    assert_eq!(ask(web, RecordType::A), ["NoError"]);
    let host = "7.1.0.10.IN-ADDR.arpa.";
    assert_eq!(ask(host, RecordType::PTR), ["NoError", &format!("{host} PTR front.web.prod.svc.cluster.local.")]);
    let unnamed = hickory_proto::rr::Name::from("fd00::".parse::<IpAddr>().expect("an address")).to_ascii();
    let pointer = format!("{unnamed} PTR fd00--0.db.prod.svc.cluster.local.");
    assert_eq!(ask(&unnamed, RecordType::PTR), ["NoError", &pointer], "a name made of the address is one too");
    assert_eq!(ask("2.0.96.10.in-addr.arpa.", RecordType::PTR), ["NXDomain"], "in a range of ours");
    for strange in
        ["1.1.1.1.in-addr.arpa.", "96.10.in-addr.arpa.", "1.1.1.1.1.in-addr.arpa.", "x.in-addr.arpa.", "example.com."]
    {
        assert_eq!(ask(strange, RecordType::PTR), ["not ours"], "{strange}");
    }
}

#[test]
fn several_records_come_in_any_order() {
    let zone = zone();
    let workloads = Map::default();
    let known = Known { zone: &zone, workloads: &workloads, pods: PodNames::Disabled, servers: &[] };
    let query = Query::query(Name::from_ascii("db.prod.svc.cluster.local.").expect("a name"), RecordType::SRV);
    let orders: std::collections::BTreeSet<String> = (0..64)
        .map(|seed| match answer(&query, &known, &mut Rng::with_seed(seed)) {
            Answered::Here(answer) => answer.answers.iter().map(|record| record.data.to_string()).collect(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(orders.len(), 2);
}
