//! A name server for what is not in the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SOA},
};

/// The name it knows, and its addresses.
pub const KNOWN: &str = "www.example.test.";
/// Addresses of [`KNOWN`].
pub const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7))];

/// Starts it, and gives its address. It ends with the test program.
///
/// # Panics
/// When the address cannot be had.
pub fn start(address: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind(address).expect("a free port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        loop {
            // A client that has gone is told of by an error of the next call, and is none of ours.
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            let _ = socket.send_to(&reply(&buffer[..length]), client);
        }
    });
    address
}

fn reply(question: &[u8]) -> Vec<u8> {
    let question = Message::from_vec(question).expect("a question");
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let query = &question.queries[0];
    let addresses = ADDRESSES
        .into_iter()
        .filter(|address| query.query_type() == if address.is_ipv4() { RecordType::A } else { RecordType::AAAA });
    let record = |address| Record::from_rdata(query.name().clone(), 60, RData::from(address));
    if *query.name() == name(KNOWN) {
        reply.answers = addresses.map(record).collect();
    } else {
        reply.metadata.response_code = ResponseCode::NXDomain;
    }
    if reply.answers.is_empty() {
        let data = SOA::new(name("ns.example.test."), name("hostmaster.example.test."), 1, 7_200, 1_800, 86_400, 60);
        reply.authorities = vec![Record::from_rdata(Name::root(), 60, RData::SOA(data))];
    }
    reply.queries = question.queries;
    reply.to_vec().expect("encodes")
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}
