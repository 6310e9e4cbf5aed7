//! Which requests are sent again, and which never.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use agent::report::outcome::Outcome;
use api::resource::service::AppProtocol;
use tokio::sync::Notify;

use crate::harness::{Proxy, answering, endpoint, refusing, run, target};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn endpoints_that_refuse_are_passed_over() {
    run(async {
        let (refusing, _socket) = refusing();
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[refusing, address]).await;
        for _ in 0..4 {
            let mut client = proxy.client().await;
            client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
            client.until("hello").await;
        }
        let records = proxy.closed(4).await;
        assert_eq!(proxy.outcomes(), [Outcome::Complete; 4]);
        // The first failure leaves the endpoint out for a while, so only one request met it.
        let attempts: Vec<usize> = records.iter().map(|record| record.attempts.len()).collect();
        assert_eq!(attempts.iter().filter(|attempts| **attempts == 2).count(), 1, "{attempts:?}");
        let failed = records.iter().find(|record| record.attempts.len() == 2).expect("one");
        assert_eq!(failed.attempts[0].outcome, Outcome::ConnectRefused);
    });
}

#[test]
fn when_nobody_is_left_the_last_failure_is_told() {
    run(async {
        let (first, _socket) = refusing();
        let (second, _other) = refusing();
        let proxy = Proxy::http(&[first, second]).await;
        let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("error=connection_refused; details=\"CONNECT_REFUSED\""), "{answer}");
        assert_eq!(proxy.records()[0].attempts.len(), 2);
    });
}

#[test]
fn a_request_that_all_refuse_waits_for_who_replaces_them() {
    run(async {
        let (first, _socket) = refusing();
        let (second, _other) = refusing();
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[first, second]).await;
        let mut client = proxy.client().await;
        // What was not sent may be sent whatever it asks for.
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        let refused = || [first, second].iter().all(|address| !proxy.local.upstream(*address).is_well());
        while !refused() {
            tokio::task::yield_now().await;
        }
        // Others may be told of first, and nobody at all.
        proxy.serve(Some(target(AppProtocol::Http, &[second])));
        tokio::task::yield_now().await;
        proxy.serve(Some(target(AppProtocol::Http, &[])));
        tokio::task::yield_now().await;
        proxy.serve(Some(target(AppProtocol::Http, &[second, address])));
        client.until("hello").await;
        let records = proxy.closed(1).await;
        assert_eq!((records[0].outcome, records[0].attempts.len()), (Outcome::Complete, 3));
    });
}

#[test]
fn a_service_that_is_down_says_so_at_once() {
    run(async {
        let (refusing, _socket) = refusing();
        let proxy = Proxy::http(&[refusing]).await;
        const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let first = proxy.ask(REQUEST).await;
        let began = Instant::now();
        let second = proxy.ask(REQUEST).await;
        assert!(began.elapsed() < Duration::from_secs(1), "only the first one waits whether somebody comes");
        for answer in [first, second] {
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        }
    });
}

/// An endpoint that answers once on its first connection, then closes it when the next request has arrived; what a client
/// gets who sends `request` second, and how many connections there were.
async fn closing(request: &str) -> (String, usize) {
    let connections: Rc<Cell<usize>> = Rc::default();
    let seen = connections.clone();
    let address = endpoint(move |mut client, number| {
        seen.set(number);
        async move {
            client.head().await;
            client.say(HELLO).await;
            client.head().await;
            if number > 1 {
                client.say(HELLO).await;
            }
        }
    })
    .await;
    let proxy = Proxy::http(&[address]).await;
    let mut client = proxy.client().await;
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("hello").await;
    client.say(request).await;
    (client.head().await, connections.get())
}

#[test]
fn only_idempotent_requests_are_repeated() {
    run(async {
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"] {
            let (answer, connections) = closing(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{method}: {answer}");
            assert_eq!(connections, 2, "{method}");
        }
        for method in ["POST", "PATCH", "PURGE"] {
            let (answer, connections) = closing(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{method}: {answer}");
            assert_eq!(connections, 1, "{method}");
        }
        // The body is gone, so it cannot be sent again.
        let (answer, connections) = closing("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(connections, 1);
    });
}

#[test]
fn an_endpoint_that_closes_without_an_answer_is_followed_by_the_next() {
    run(async {
        let ending = endpoint(|mut client, _| async move {
            client.head().await;
        })
        .await;
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[ending, address]).await;
        for _ in 0..8 {
            let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert!(proxy.records().iter().all(|record| record.outcome == Outcome::Complete));
    });
}

#[test]
fn a_new_connection_that_closes_is_an_answer_of_the_endpoint() {
    run(async {
        let connections: Rc<Cell<usize>> = Rc::default();
        let seen = connections.clone();
        let address = endpoint(move |mut client, number| {
            seen.set(number);
            async move {
                client.head().await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("UPSTREAM_CLOSED"), "{answer}");
        assert_eq!((connections.get(), proxy.outcomes()), (1, vec![Outcome::UpstreamClosed]));
    });
}

#[test]
fn connections_that_closed_while_idle_are_not_used() {
    run(async {
        let closed = Rc::new(Notify::new());
        let told = closed.clone();
        let address = endpoint(move |mut client, number| {
            let told = told.clone();
            async move {
                client.head().await;
                client.say(HELLO).await;
                if number == 1 {
                    drop(client);
                    told.notify_one();
                } else {
                    client.rest().await;
                }
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.until("hello").await;
        closed.notified().await;
        // A POST could not be repeated, so it must not meet the closed connection at all.
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        client.until("hello").await;
        let records = proxy.closed(2).await;
        assert!(!records[1].attempts[0].reused && records[1].attempts.len() == 1, "{:?}", records[1].attempts);
    });
}
