use std::collections::BTreeMap;

use anyhow::Result;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use tests::{
    burst::Burst,
    sandbox::{netns, plan::Role},
};

use crate::{AGENT, cluster};

/// Questions a second that are offered, whether they are answered or not.
const RATE: usize = 10_000;
const QUESTIONS: usize = 2 * RATE;
/// Resolvers that ask at once, each at a port of its own.
const CLIENTS: usize = 8;
/// What is asked in turn: one record, several, a service, a name of an address, and what a search list asks in vain.
const ASKED: [(&str, RecordType); 5] = [
    ("web.shop.svc.cluster.local.", RecordType::A),
    ("db.shop.svc.cluster.local.", RecordType::AAAA),
    ("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
    ("1.7.96.10.in-addr.arpa.", RecordType::PTR),
    ("www.example.test.shop.svc.cluster.local.", RecordType::A),
];

/// The n-th question of a client, which has this as its id.
fn question(id: usize) -> Result<Vec<u8>> {
    let (name, kind) = ASKED[id % ASKED.len()];
    let mut message = Message::query();
    message.metadata.id = u16::try_from(id)?;
    message.queries.push(Query::query(Name::from_ascii(name)?, kind));
    Ok(message.to_vec()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_lost_in_a_burst() {
    let (_, _, _turn) = cluster().await;
    let questions = (0..QUESTIONS / CLIENTS).map(question).collect::<Result<_>>().expect("questions");
    let burst = Burst { to: AGENT, clients: CLIENTS, questions, rate: RATE };
    let codes = tokio::task::block_in_place(|| netns::within(&Role::Node(1).namespace(), || burst.run()));
    // NOERROR is 0, NXDOMAIN 3.
    let missing = QUESTIONS / ASKED.len();
    assert_eq!(codes.expect("questions can be asked"), BTreeMap::from([(0, QUESTIONS - missing), (3, missing)]));
}
