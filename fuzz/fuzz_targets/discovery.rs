//! Both ends of the discovery stream against a peer that sends anything: messages, each behind its length in one byte.
//!
//! No message may make either end panic, and what an agent says it holds is the sum of what it was told to apply.

#![no_main]

use std::collections::BTreeMap;

use api::{
    delta::{
        client::{Client, Received},
        server::Server,
        version::Digests,
    },
    proto::discovery as wire,
    resource::Kind,
};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    as_agent(data);
    as_gateway(data);
});

fn as_agent(data: &[u8]) {
    let mut client = Client::new("node", "0.0.0");
    let mut applied = BTreeMap::new();
    client.hello();
    for message in messages(data) {
        let Ok(response) = wire::WatchResponse::decode(message) else { continue };
        match client.receive(response) {
            // The stream ends and another one begins; what was applied stays.
            Err(_) => drop(client.hello()),
            Ok(Received::Commit(changes, ..)) => {
                for change in changes.set {
                    applied.insert(change.key, change.version);
                }
                for key in changes.removed {
                    applied.remove(&key);
                }
                client.applied(&[]);
            }
            Ok(_) => {}
        }
        let mut sum = Digests::default();
        for (key, version) in &applied {
            sum.add(key, *version);
        }
        assert_eq!(client.digests().to_wire(Kind::ALL), sum.to_wire(Kind::ALL));
    }
}

fn as_gateway(data: &[u8]) {
    let mut server = Server::new();
    for message in messages(data) {
        let Ok(request) = wire::WatchRequest::decode(message) else { continue };
        if server.request(request, "cluster").is_err() {
            server = Server::new();
        }
    }
}

fn messages(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first()?;
        let (message, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        Some(message)
    })
}
