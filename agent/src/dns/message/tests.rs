//! Bytes in, bytes out.

use std::net::Ipv4Addr;

use hickory_proto::rr::{Name, RData, Record};

use super::*;

fn query(edns: Option<u16>) -> Message {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii("A.Example.").expect("a name"), RecordType::A)];
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message
}

fn heard(message: &Message, carrier: Carrier) -> Heard {
    Heard::parse(&message.to_vec().expect("encodes"), carrier)
}

fn request(edns: Option<u16>, carrier: Carrier) -> Request {
    match heard(&query(edns), carrier) {
        Heard::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

fn answer(count: u32) -> Answer {
    let name = Name::from_ascii("A.Example.").expect("a name");
    let record =
        |index: u32| Record::from_rdata(name.clone(), 5, RData::from(std::net::IpAddr::V4(Ipv4Addr::from(index))));
    Answer { answers: (0..count).map(record).collect(), additionals: vec![record(1)], ..Answer::default() }
}

fn code(heard: Heard) -> ResponseCode {
    match heard {
        Heard::Wrong(reply, code) => {
            let reply = Message::from_vec(&reply).expect("a message");
            // Two names, BADVERS and BADSIG, share a number.
            assert_eq!((reply.metadata.id, u16::from(reply.metadata.response_code)), (4_711, u16::from(code)));
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            code
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reply_repeats_the_question_and_its_spelling() {
    let reply = Message::from_vec(&request(None, Carrier::Udp).reply(answer(2))).expect("a message");
    assert_eq!(reply.queries[0].name().to_ascii(), "A.Example.");
    assert_eq!((reply.metadata.id, reply.answers.len(), reply.additionals.len()), (4_711, 2, 1));
    assert!(reply.metadata.authoritative && reply.metadata.recursion_desired && reply.metadata.recursion_available);
    assert!(reply.edns.is_none());
}

#[test]
fn what_does_not_fit_is_left_out_and_then_marked() {
    for (edns, limit) in [(None, 512), (Some(100), 512), (Some(800), 800), (Some(9_000), 1_232)] {
        let request = request(edns, Carrier::Udp);
        assert_eq!(request.limit(), limit);
        let bytes = request.reply(answer(500));
        let reply = Message::from_vec(&bytes).expect("a message");
        assert!(reply.metadata.truncation && reply.answers.is_empty(), "{edns:?}");
        assert_eq!(reply.edns.is_some(), edns.is_some());
        let fitting = (limit - 60) / 16;
        let bytes = request.reply(answer(fitting as u32));
        let reply = Message::from_vec(&bytes).expect("a message");
        assert!(!reply.metadata.truncation && bytes.len() <= limit);
        assert_eq!(reply.answers.len(), fitting);
    }
    let bytes = request(None, Carrier::Tcp).reply(answer(500));
    assert_eq!(Message::from_vec(&bytes).expect("a message").answers.len(), 500);
    let bytes = request(None, Carrier::Tcp).reply(answer(10_000));
    let reply = Message::from_vec(&bytes).expect("a message");
    assert!(!reply.metadata.truncation && reply.answers.len() > 1_000, "there is no other way to ask for the rest");
}

#[test]
fn what_cannot_be_answered_is_refused_with_its_reason() {
    let mut message = query(None);
    message.metadata.op_code = OpCode::Update;
    assert_eq!(code(heard(&message, Carrier::Udp)), ResponseCode::NotImp);
    let mut message = query(None);
    message.queries.push(message.queries[0].clone());
    assert_eq!(code(heard(&message, Carrier::Udp)), ResponseCode::FormErr);
    message.queries.clear();
    assert_eq!(code(heard(&message, Carrier::Udp)), ResponseCode::FormErr);
    let mut message = query(None);
    message.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(heard(&message, Carrier::Udp)), ResponseCode::Refused);
    message.queries[0].set_query_class(DNSClass::IN).set_query_type(RecordType::AXFR);
    assert_eq!(code(heard(&message, Carrier::Tcp)), ResponseCode::Refused);
    let mut message = query(Some(1_232));
    if let Some(edns) = &mut message.edns {
        edns.set_version(1);
    }
    assert_eq!(code(heard(&message, Carrier::Udp)), ResponseCode::BADVERS);
    let bytes = query(None).to_vec().expect("encodes");
    assert_eq!(code(Heard::parse(&bytes[..20], Carrier::Udp)), ResponseCode::FormErr);
}

#[test]
fn replies_and_scraps_are_not_answered() {
    let mut message = query(None);
    message.metadata.message_type = MessageType::Response;
    assert!(matches!(heard(&message, Carrier::Udp), Heard::Noise));
    assert!(matches!(Heard::parse(&[0; 11], Carrier::Udp), Heard::Noise));
}
