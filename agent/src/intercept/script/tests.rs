use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const PORTS: Ports = Ports { ipv4: Pair { tcp: 1001, udp: 1002 }, ipv6: Some(Pair { tcp: 1003, udp: 1004 }) };

fn destination(address: &str, transport: Transport) -> Destination {
    Destination { address: address.parse().expect("an address"), transport }
}

fn example() -> Ruleset {
    let balanced = destination("10.97.0.1:80", Transport::Tcp);
    Ruleset {
        services: BTreeMap::from([
            (destination("10.96.0.1:80", Transport::Tcp), Action::Catch),
            (destination("10.96.0.1:53", Transport::Udp), Action::Refuse),
            (destination("10.96.0.1:7", Transport::Sctp), Action::Drop),
            (destination("[fd96::1]:80", Transport::Tcp), Action::CatchInside),
            (balanced, Action::Guard),
        ]),
        guarded: BTreeMap::from([(balanced, Action::Catch)]),
        admitted: BTreeSet::from([(balanced, "10.0.0.0/8".parse().expect("a range"))]),
        inside: ["10.1.0.0/16", "fd01::/64"].map(|range| range.parse().expect("a range")).into(),
        cluster_ips: ["10.96.0.1", "fd96::1"].map(|address| address.parse().expect("an address")).into(),
        service_ranges: ["10.96.0.0/16"].map(|range| range.parse().expect("a range")).into(),
    }
}

#[test]
fn the_whole_table() {
    let script = replace(&example(), &PORTS, Some(Duration::from_secs(16)));
    assert_eq!(script, include_str!("whole.nft"), "if the change is meant, this is the new file:\n{script}");
}

#[test]
fn equal_rulesets_need_no_update() {
    assert_eq!(update(&example(), &example()), "");
}

#[test]
fn only_what_changed_is_in_an_update() {
    let old = example();
    let mut new = old.clone();
    new.services.remove(&destination("10.96.0.1:7", Transport::Sctp));
    new.services.insert(destination("10.96.0.1:53", Transport::Udp), Action::Catch);
    new.services.insert(destination("10.96.0.2:80", Transport::Tcp), Action::Catch);
    new.cluster_ips.insert("10.96.0.2".parse().expect("an address"));
    let expected = "\
        delete element inet portico services4 { 10.96.0.1 . sctp . 7, 10.96.0.1 . udp . 53 }\n\
        add element inet portico services4 { 10.96.0.1 . udp . 53 : jump catch, 10.96.0.2 . tcp . 80 : jump catch }\n\
        add element inet portico cluster_ips4 { 10.96.0.2 }\n";
    assert_eq!(update(&old, &new), expected);
}

/// Sets as `nft` would hold them: what `script` does to `sets`, with its rules about elements that are there or not.
fn run(sets: &mut BTreeMap<String, BTreeMap<String, String>>, script: &str) {
    for line in script.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let set = sets.entry(words[4].to_owned()).or_default();
        if words[0] == "flush" {
            set.clear();
            continue;
        }
        let elements = line.split_once(" { ").expect("elements").1.strip_suffix(" }").expect("elements");
        for element in elements.split(", ") {
            let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
            if words[0] == "delete" {
                assert!(set.remove(key).is_some(), "{line}: {key} is not there");
            } else {
                assert!(set.insert(key.to_owned(), value.to_owned()).is_none(), "{line}: {key} is there already");
            }
        }
    }
    sets.retain(|_, set| !set.is_empty());
}

fn rulesets() -> impl Strategy<Value = Ruleset> {
    let destination = (any::<bool>(), 0..4u8, 0..3u16, 0..2u8).prop_map(|(ipv4, host, port, transport)| Destination {
        address: if ipv4 {
            ([10, 96, 0, host], port).into()
        } else {
            ([0xfd96, 0, 0, 0, 0, 0, 0, host.into()], port).into()
        },
        transport: if transport == 0 { Transport::Tcp } else { Transport::Udp },
    });
    let verdict = prop_oneof![
        Just(Action::Catch),
        Just(Action::CatchInside),
        Just(Action::Refuse),
        Just(Action::Drop),
        Just(Action::Guard)
    ];
    let range = (0..8u8).prop_map(|host| IpNet::from(IpAddr::from([10, 1, 0, host])));
    let destinations = || prop::collection::btree_map(destination.clone(), verdict.clone(), 0..12);
    let ranges = prop::collection::btree_set(range.clone(), 0..4);
    let admitted = prop::collection::btree_set((destination.clone(), range), 0..4);
    (destinations(), destinations(), admitted, ranges).prop_map(|(services, guarded, admitted, inside)| {
        let cluster_ips = services.keys().map(|destination| destination.address.ip()).collect();
        Ruleset { services, guarded, admitted, service_ranges: inside.clone(), inside, cluster_ips }
    })
}

proptest! {
    #[test]
    fn updates_lead_to_the_same_sets_as_a_new_table(steps in prop::collection::vec(rulesets(), 1..4)) {
        let mut sets = BTreeMap::new();
        let mut old = Ruleset::default();
        for new in steps {
            run(&mut sets, &update(&old, &new));
            let mut fresh = BTreeMap::new();
            run(&mut fresh, &update(&Ruleset::default(), &new));
            prop_assert_eq!(&sets, &fresh);
            old = new;
        }
    }
}
