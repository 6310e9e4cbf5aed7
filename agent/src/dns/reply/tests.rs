//! Replies of others, as hickory writes them.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode},
    rr::{RData, Record, RecordType, rdata::SOA},
};

use super::*;
use crate::dns::message::{Carrier, Heard};

const ID: u16 = 99;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn asked() -> Query {
    Query::query(name("www.example.com."), RecordType::A)
}

fn address(last: u8, ttl: u32) -> Record {
    Record::from_rdata(name("www.example.com."), ttl, RData::from(IpAddr::from([192, 0, 2, last])))
}

fn message(answers: Vec<Record>) -> Message {
    let mut message = Message::new(ID, MessageType::Response, OpCode::Query);
    message.queries = vec![asked()];
    message.answers = answers;
    message.edns = Some(Edns::new());
    message
}

fn parse(message: &Message) -> Result<Reply, Mismatch> {
    Reply::parse(message.to_vec().expect("encodes"), ID, &asked())
}

fn request(text: &str, edns: bool) -> Request {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(name(text), RecordType::A)];
    message.edns = edns.then(|| {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM);
        edns
    });
    match Heard::parse(&message.to_vec().expect("encodes"), Carrier::Udp) {
        Heard::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

fn passed_on(reply: &Reply, request: &Request, age: u64) -> Message {
    let bytes = reply.to(request, &wire_name(request.query.name()), Duration::from_secs(age));
    Message::from_vec(&bytes).expect("a message")
}

#[test]
fn a_reply_is_passed_on_with_id_spelling_and_age_of_the_client() {
    let reply = parse(&message(vec![address(1, 300), address(2, 60)])).expect("a reply");
    assert_eq!((reply.code, reply.lifetime, reply.is_positive), (ResponseCode::NoError, Duration::from_secs(60), true));
    let passed = passed_on(&reply, &request("WWW.example.COM.", false), 20);
    assert_eq!((passed.metadata.id, passed.queries[0].name().to_ascii()), (4_711, "WWW.example.COM.".to_owned()));
    assert_eq!(passed.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [280, 40]);
    assert_eq!(passed.answers[0].name.to_ascii(), "WWW.example.COM.", "written as a reference to the question");
    assert!(passed.edns.is_none(), "the client has none");
    assert!(passed_on(&reply, &request("www.example.com.", true), 0).edns.is_some());
    assert_eq!(passed_on(&reply, &request("www.example.com.", true), 9_999).answers[0].ttl, 0);
}

#[test]
fn what_does_not_fit_the_client_is_marked() {
    let reply = parse(&message((0..60).map(|last| address(last, 60)).collect())).expect("a reply");
    let passed = passed_on(&reply, &request("www.example.com.", false), 0);
    assert!(passed.metadata.truncation && passed.answers.is_empty());
    let passed = passed_on(&reply, &request("www.example.com.", true), 0);
    assert!(!passed.metadata.truncation && passed.answers.len() == 60);
}

#[test]
fn that_there_is_nothing_is_kept_as_long_as_its_authority_says() {
    let mut nothing = message(vec![]);
    nothing.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(parse(&nothing).expect("a reply").lifetime, Duration::ZERO, "nobody says how long");
    let soa = SOA::new(name("ns."), name("admin."), 1, 1, 1, 1, 30);
    nothing.authorities = vec![Record::from_rdata(name("example.com."), 900, RData::SOA(soa))];
    assert_eq!(parse(&nothing).expect("a reply").lifetime, Duration::from_secs(30));
    nothing.metadata.response_code = ResponseCode::ServFail;
    assert_eq!(parse(&nothing).expect("a reply").lifetime, Duration::ZERO);
    assert_eq!(parse(&message(vec![address(1, 1 << 30)])).expect("a reply").lifetime, MAX_AGE);
}

#[test]
fn strangers_are_told_apart() {
    let mut other = message(vec![address(1, 60)]);
    other.metadata.id = ID + 1;
    assert_eq!(parse(&other), Err(Mismatch::Stranger));
    let mut other = message(vec![address(1, 60)]);
    other.queries[0].set_name(name("example.com."));
    assert_eq!(parse(&other), Err(Mismatch::Stranger));
    let mut other = message(vec![address(1, 60)]);
    other.queries[0].set_query_type(RecordType::AAAA);
    assert_eq!(parse(&other), Err(Mismatch::Stranger));
    let mut other = message(vec![]);
    other.metadata.message_type = MessageType::Query;
    assert_eq!(parse(&other), Err(Mismatch::Stranger));
    let mut spelled = message(vec![address(1, 60)]);
    spelled.queries[0].set_name(name("wWw.example.com."));
    assert!(parse(&spelled).is_ok(), "names compare without case");
}

#[test]
fn a_message_that_ends_early_is_malformed_unless_it_says_so() {
    let bytes = message(vec![address(1, 60), address(2, 60)]).to_vec().expect("encodes");
    for end in 0..bytes.len() {
        let part = Reply::parse(bytes[..end].to_vec(), ID, &asked());
        assert!(part.is_err(), "{end} of {} bytes", bytes.len());
    }
    let mut cut = bytes[..bytes.len() - 20].to_vec();
    cut[2] |= TRUNCATED;
    assert!(Reply::parse(cut, ID, &asked()).expect("a reply").truncated);
}
