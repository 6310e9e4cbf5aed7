//! Limits of time, and draining. The worker's clock is moved by hand, so no test waits.

use std::{rc::Rc, time::Duration};

use agent::report::outcome::Outcome;
use tokio::sync::Notify;

use crate::harness::{Client, Proxy, answering, endpoint, run};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A client whose first request was answered, so that its connection is known to be served and idle.
async fn idle(proxy: &Proxy) -> Client {
    let mut client = proxy.client().await;
    client.say(GET).await;
    client.until("hello").await;
    client
}

#[test]
fn half_a_head_is_answered_and_silence_is_not() {
    run(async {
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut slow = proxy.client().await;
        slow.say("GET / HTTP/1.1\r\nHo").await;
        let mut silent = proxy.client().await;
        // Its answer shows that the proxy has read what the others sent before.
        idle(&proxy).await;
        proxy.pass(Duration::from_secs(16));
        let answer = slow.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("HEADER_TIMEOUT"), "{answer}");
        silent.closed().await;
    });
}

#[test]
fn idle_connections_are_closed_without_a_word() {
    run(async {
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = idle(&proxy).await;
        // Between requests there is more time than for the head of one.
        proxy.pass(Duration::from_secs(60));
        client.say(GET).await;
        client.until("hello").await;
        proxy.pass(Duration::from_secs(700));
        client.closed().await;
    });
}

#[test]
fn an_endpoint_that_does_not_answer_is_given_up() {
    run(async {
        let asked = Rc::new(Notify::new());
        let tell = asked.clone();
        let address = endpoint(move |mut client, _| {
            let tell = tell.clone();
            async move {
                client.head().await;
                tell.notify_one();
                client.rest().await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say(GET).await;
        asked.notified().await;
        proxy.pass(Duration::from_secs(301));
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 504 ") && head.contains("http_response_timeout"), "{head}");
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::UpstreamTimeout);
    });
}

#[test]
fn a_client_that_stops_sending_is_told_so() {
    run(async {
        let got = Rc::new(Notify::new());
        let tell = got.clone();
        let address = endpoint(move |mut client, _| {
            let tell = tell.clone();
            async move {
                client.until("half").await;
                tell.notify_one();
                client.rest().await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf").await;
        got.notified().await;
        // What was sent since the alarm was set gives more time, once.
        proxy.pass(Duration::from_secs(301));
        tokio::task::yield_now().await;
        proxy.pass(Duration::from_secs(700));
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    });
}

#[test]
fn idle_connections_to_endpoints_are_closed() {
    run(async {
        let closed = Rc::new(Notify::new());
        let tell = closed.clone();
        let address = endpoint(move |mut client, _| {
            let tell = tell.clone();
            async move {
                client.head().await;
                client.say(HELLO).await;
                client.closed().await;
                tell.notify_one();
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        idle(&proxy).await;
        assert_eq!(proxy.local.upstream(address).pool.idle(), 1);
        proxy.pass(Duration::from_secs(61));
        closed.notified().await;
        assert_eq!(proxy.local.upstream(address).pool.idle(), 0);
    });
}

#[test]
fn draining_closes_idle_connections_and_finishes_requests() {
    run(async {
        let (asked, go) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (tell, wait) = (asked.clone(), go.clone());
        let address = endpoint(move |mut client, _| {
            let (tell, wait) = (tell.clone(), wait.clone());
            async move {
                loop {
                    if client.head().await.starts_with("GET /slow ") {
                        tell.notify_one();
                        wait.notified().await;
                    }
                    client.say(HELLO).await;
                }
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut waiting = idle(&proxy).await;
        let mut busy = proxy.client().await;
        busy.say("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        asked.notified().await;
        proxy.local.drain.begin();
        waiting.closed().await;
        go.notify_one();
        let answer = busy.rest().await;
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("hello"), "{answer}");
        // Who was accepted, but has not asked yet, may ask once.
        let late = proxy.ask(GET).await;
        assert!(late.contains("connection: close\r\n") && late.ends_with("hello"), "{late}");
    });
}
