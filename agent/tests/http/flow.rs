//! How bytes flow: informational answers, trailers, large bodies, clients that read slowly or leave.

use std::{cell::Cell, rc::Rc};

use agent::report::outcome::Outcome;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use crate::harness::{Proxy, answering, endpoint, run};

/// More than sockets and buffers on the way can hold.
const LARGE: usize = 64 << 20;

#[test]
fn a_client_that_waits_for_100_gets_it_from_the_endpoint() {
    run(async {
        let asked = Rc::new(Notify::new());
        let go = asked.clone();
        let address = endpoint(move |mut client, _| {
            let go = go.clone();
            async move {
                assert!(client.head().await.contains("expect: 100-continue\r\n"));
                go.notified().await;
                client.say("HTTP/1.1 100 Continue\r\n\r\n").await;
                assert_eq!(client.until("body").await, "body");
                client.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
        asked.notify_one();
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.say("body").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    });
}

#[test]
fn a_client_that_is_refused_does_not_send_its_body() {
    run(async {
        let (address, _) = answering("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
        let proxy = Proxy::http(&[address]).await;
        let answer = proxy.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 417 ") && answer.contains("connection: close\r\n"), "{answer}");
    });
}

#[test]
fn early_hints_come_before_the_answer() {
    run(async {
        let (address, _) = answering(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        client.until("hello").await;
        let old = proxy.ask("GET / HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.1 200 OK\r\n"), "{old}");
    });
}

#[test]
fn trailers_pass_both_ways() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            let head = client.head().await;
            assert!(head.contains("te: trailers\r\n") && head.contains("trailer: digest\r\n"), "{head}");
            let body = client.until("\r\n\r\n").await;
            assert_eq!(body, "4\r\nbody\r\n0\r\ndigest: abc\r\n\r\n");
            client
                .say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nGrpc-Status: 5\r\n\r\n")
                .await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client
            .say("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: digest\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        client.say("4\r\nbody\r\n0\r\nDigest: abc\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.until("\r\n\r\n").await, "5\r\nhello\r\n0\r\ngrpc-status: 5\r\n\r\n");
        assert_eq!(proxy.closed(1).await[0].grpc_status, Some(5));
    });
}

#[test]
fn large_bodies_pass_in_both_directions() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            let mut left = LARGE;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                let read = client.0.read(&mut buffer).await.expect("the proxy writes");
                assert!(read > 0 && buffer[..read].iter().all(|byte| *byte == b'u'));
                left -= read;
            }
            client.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
            buffer.fill(b'd');
            for _ in 0..LARGE / buffer.len() {
                client.say(&buffer).await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n")).await;
        let piece = vec![b'u'; 1 << 20];
        for _ in 0..LARGE / piece.len() {
            client.say(&piece).await;
        }
        client.head().await;
        let mut left = LARGE;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let read = client.0.read(&mut buffer).await.expect("the proxy writes");
            assert!(read > 0 && buffer[..read].iter().all(|byte| *byte == b'd'));
            left -= read;
        }
        let record = proxy.closed(1).await.remove(0);
        assert_eq!((record.received, record.sent, record.outcome), (LARGE as u64, LARGE as u64, Outcome::Complete));
    });
}

#[test]
fn a_slow_reader_slows_its_endpoint_down() {
    run(async {
        let (written, stuck) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let (count, tell) = (written.clone(), stuck.clone());
        let address = endpoint(move |mut client, _| {
            let (count, tell) = (count.clone(), tell.clone());
            async move {
                client.head().await;
                client.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
                let piece = vec![b'x'; 64 << 10];
                while count.get() < LARGE {
                    // Nobody reads, so at some point nothing more can be written for a while.
                    let write = client.0.write_all(&piece);
                    match tokio::time::timeout(std::time::Duration::from_millis(300), write).await {
                        Ok(Ok(())) => count.set(count.get() + piece.len()),
                        Ok(Err(_)) => return,
                        Err(_) => return tell.notify_one(),
                    }
                }
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        stuck.notified().await;
        assert!(written.get() < LARGE, "the proxy has taken all of it");
    });
}

#[test]
fn a_client_that_leaves_ends_its_request_at_the_endpoint() {
    run(async {
        let (asked, left) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (tell_asked, tell_left) = (asked.clone(), left.clone());
        let address = endpoint(move |mut client, _| {
            let (asked, left) = (tell_asked.clone(), tell_left.clone());
            async move {
                client.head().await;
                asked.notify_one();
                client.closed().await;
                left.notify_one();
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        asked.notified().await;
        client.0.set_zero_linger().expect("open");
        drop(client);
        left.notified().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::ClientClosed);
        assert_eq!(proxy.ended.get(), 1);
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_ends_its_request() {
    run(async {
        let (got, left) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (tell_got, tell_left) = (got.clone(), left.clone());
        let address = endpoint(move |mut client, _| {
            let (got, left) = (tell_got.clone(), tell_left.clone());
            async move {
                client.until("half").await;
                got.notify_one();
                client.closed().await;
                left.notify_one();
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf").await;
        got.notified().await;
        drop(client);
        left.notified().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::ClientClosed);
    });
}

#[test]
fn a_client_that_only_has_nothing_more_to_ask_gets_its_answer() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            tokio::task::yield_now().await;
            client.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.0.shutdown().await.expect("open");
        assert!(client.rest().await.ends_with("hello"));
    });
}
