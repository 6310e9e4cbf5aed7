//! A message of a DNS client, and the reply of another server to the same question.
//!
//! Whatever comes, the answer is a message that fits what the client takes, repeats its id, and is never the answer to a
//! reply; what another server says is passed on as a message that can be read, or not at all.

#![no_main]

use std::{collections::BTreeMap, net::IpAddr, sync::LazyLock, time::Duration};

use agent::{
    dns::{
        answer::{Answered, Known, PodNames, answer},
        message::{Carrier, Heard},
        reply::{Reply, wire_name},
    },
    table::{
        Map,
        zone::{Content, Entry, Host, Port, Zone},
    },
};
use api::resource::{name::NamespacedName, service::Transport};
use hickory_proto::{op::Message, rr::Name};
use libfuzzer_sys::fuzz_target;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let address = |last| IpAddr::from([10, 0, 0, last]);
    let port = Port { name: "http".into(), transport: Transport::Tcp, number: 80 };
    let host = Host {
        label: (*b"h").into(),
        name: name("h.b.ns.svc.x."),
        addresses: [address(2), IpAddr::from([0xfd; 16])].into(),
        ports: [port.clone()].into(),
    };
    let entry = |text: &str, content, hosts: Vec<Host>| {
        (
            NamespacedName::new("ns", text),
            Entry { name: name(&format!("{text}.ns.svc.x.")), content, hosts: hosts.into() }.into(),
        )
    };
    let entries = BTreeMap::from([
        entry("a", Content::ClusterIps([address(1)].into(), [port].into()), vec![]),
        entry("b", Content::Headless, vec![host]),
        entry("c", Content::Alias(name("b.ns.svc.x.")), vec![]),
        entry("d", Content::Alias(name("elsewhere.")), vec![]),
    ]);
    Zone::new(name("x."), 1, ["10.0.0.0/8".parse().expect("a network")].into(), &entries, [])
});

fuzz_target!(|data: &[u8]| {
    let Some((carrier, data)) = data.split_first() else { return };
    let carrier = if carrier & 1 == 0 { Carrier::Udp } else { Carrier::Tcp };
    let is_question = data.get(2).is_some_and(|flags| flags & 0x80 == 0);
    let request = match Heard::parse(data, carrier) {
        Heard::Request(request) => request,
        Heard::Wrong(reply, code) => {
            let reply = Message::from_vec(&reply).expect("our own reply can be read");
            // Two names, BADVERS and BADSIG, share a number.
            assert!(is_question && u16::from(reply.metadata.response_code) == u16::from(code));
            assert_eq!(reply.metadata.id.to_be_bytes(), data[..2]);
            return;
        }
        Heard::Noise => {
            assert!(data.len() < 12 || !is_question);
            return;
        }
    };
    assert!(is_question);
    let workloads = Map::default();
    let known = Known { zone: &ZONE, workloads: &workloads, pods: PodNames::Verified, servers: &[] };
    if let Answered::Here(answer) = answer(&request.query, &known, &mut fastrand::Rng::with_seed(0)) {
        let bytes = request.reply(answer);
        assert!(bytes.len() <= request.limit());
        let reply = Message::from_vec(&bytes).expect("our own reply can be read");
        assert!(reply.metadata.id == request.id() && reply.queries == [request.query.clone()]);
    }
    // The rest of the input as the reply of another server, made to fit the question.
    let mut bytes = data.to_vec();
    bytes[2] |= 0x80;
    if let Ok(reply) = Reply::parse(bytes, request.id(), &request.query) {
        let passed = reply.to(&request, &wire_name(request.query.name()), Duration::from_secs(7));
        assert!(passed.len() <= request.limit());
        assert_eq!(passed[..2], request.id().to_be_bytes());
        assert!(Reply::parse(passed, request.id(), &request.query).is_ok());
    }
});
