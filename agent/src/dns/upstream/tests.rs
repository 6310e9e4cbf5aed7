//! Servers that a test writes itself, at addresses of loopback.

use std::{future::Future, sync::Arc};

use hickory_proto::{
    op::Query,
    rr::{Name, RData, Record, RecordType},
};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tokio::{net::TcpListener, task::LocalSet};

use super::*;
use crate::dns::reply::wire_name;

/// What a server does with a question that came for the n-th time.
type Behave = fn(Message, usize) -> Vec<Message>;

struct Server {
    address: SocketAddr,
    asked: Rc<Cell<usize>>,
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let test = async { timeout(Duration::from_secs(30), test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, test);
}

/// Serves datagrams as `behave` says, and connections with a whole answer.
async fn server(behave: Behave) -> Server {
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = tcp.local_addr().expect("bound");
    let udp = UdpSocket::bind(address).await.expect("the same port is free");
    let asked = Rc::new(Cell::new(0));
    let count = asked.clone();
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 2_048];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            count.set(count.get() + 1);
            let question = Message::from_vec(&buffer[..length]).expect("a question");
            for reply in behave(question, count.get()) {
                udp.send_to(&reply.to_vec().expect("encodes"), client).await.expect("is sent");
            }
        }
    });
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.expect("a length");
            let mut question = vec![0; length.into()];
            stream.read_exact(&mut question).await.expect("a question");
            let reply = answer(Message::from_vec(&question).expect("a question"), 200).to_vec().expect("encodes");
            stream.write_u16(reply.len() as u16).await.expect("is sent");
            stream.write_all(&reply).await.expect("is sent");
        }
    });
    Server { address, asked }
}

/// The reply with so many addresses.
fn answer(question: Message, count: u8) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    let name = question.queries[0].name().clone();
    let record = |last| Record::from_rdata(name.clone(), 60, RData::from(std::net::IpAddr::from([192, 0, 2, last])));
    reply.answers = (0..count).map(record).collect();
    reply.queries = question.queries;
    reply
}

fn coded(question: Message, code: ResponseCode) -> Message {
    let mut reply = answer(question, 0);
    reply.metadata.response_code = code;
    reply
}

fn upstream(servers: &[SocketAddr]) -> Rc<Upstream> {
    let meter = SdkMeterProvider::builder().build().meter("test");
    let (_, servers) = watch::channel(Arc::from(servers));
    Rc::new(Upstream::new(servers, meter.f64_histogram("took").build()))
}

fn question(name: &str) -> Question {
    let query = Query::query(Name::from_ascii(name).expect("a name"), RecordType::A);
    Question { query, dnssec_ok: false, checking_disabled: false }
}

async fn records(upstream: &Rc<Upstream>, name: &str) -> Result<usize, Failure> {
    let question = question(name);
    let spelling = wire_name(question.query.name());
    let learned = upstream.ask(question).await;
    learned.outcome.map(|reply| Message::from_vec(&reply.spelled(&spelling)).expect("a message").answers.len())
}

#[test]
fn many_who_ask_the_same_ask_once_and_the_answer_is_kept() {
    run(async {
        let server = server(|question, _| vec![answer(question, 2)]).await;
        let upstream = upstream(&[server.address]);
        let all = (0..50).map(|_| records(&upstream, "www.example.com."));
        assert!(futures::future::join_all(all).await.iter().all(|count| *count == Ok(2)));
        assert_eq!(server.asked.get(), 1);
        assert!(upstream.cached(&question("WWW.example.com.")).is_some());
        assert!(upstream.cached(&question("example.com.")).is_none());
        assert!(upstream.asked.borrow().is_empty());
    });
}

#[test]
fn forged_replies_are_passed_over() {
    run(async {
        let server = server(|question, _| {
            let mut wrong_id = answer(question.clone(), 9);
            wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
            let mut wrong_name = answer(question.clone(), 9);
            wrong_name.queries[0].set_name(Name::from_ascii("evil.example.").expect("a name"));
            vec![wrong_id, wrong_name, answer(question, 1)]
        });
        let server = server.await;
        assert_eq!(records(&upstream(&[server.address]), "www.example.com.").await, Ok(1));
    });
}

#[test]
fn a_truncated_reply_is_asked_for_over_tcp() {
    run(async {
        let server = server(|question, _| {
            let mut reply = answer(question, 0);
            reply.metadata.truncation = true;
            vec![reply]
        });
        let server = server.await;
        assert_eq!(records(&upstream(&[server.address]), "big.example.com.").await, Ok(200));
    });
}

#[test]
fn the_next_server_is_asked_when_one_fails_and_the_good_one_is_remembered() {
    run(async {
        let broken = server(|question, _| vec![coded(question, ResponseCode::ServFail)]).await;
        let good = server(|question, _| vec![answer(question, 1)]).await;
        let upstream = upstream(&[broken.address, good.address]);
        assert_eq!(records(&upstream, "one.example.com.").await, Ok(1));
        assert_eq!(records(&upstream, "two.example.com.").await, Ok(1));
        assert_eq!((broken.asked.get(), good.asked.get()), (1, 2));
    });
}

#[test]
fn a_server_without_edns_is_asked_without() {
    run(async {
        let old = server(|question, _| match question.edns {
            Some(_) => vec![coded(question, ResponseCode::FormErr)],
            None => vec![answer(question, 1)],
        });
        let old = old.await;
        assert_eq!(records(&upstream(&[old.address]), "www.example.com.").await, Ok(1));
    });
}

#[test]
fn a_silent_server_is_asked_again_and_silence_is_kept_for_a_moment() {
    run(async {
        let server = server(|question, times| if times < 2 { vec![] } else { vec![answer(question, 1)] }).await;
        assert_eq!(records(&upstream(&[server.address]), "www.example.com.").await, Ok(1));
        let dead = self::server(|_, _| vec![]).await;
        let upstream = upstream(&[dead.address]);
        assert_eq!(records(&upstream, "www.example.com.").await, Err(Failure::Unanswered));
        assert!(upstream.cached(&question("www.example.com.")).is_some_and(|learned| learned.outcome.is_err()));
    });
}

#[test]
fn without_servers_nobody_is_asked() {
    run(async {
        assert_eq!(records(&upstream(&[]), "www.example.com.").await, Err(Failure::NoServers));
    });
}
