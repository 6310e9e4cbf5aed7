//! Connections that change their protocol, such as WebSocket's.

use std::time::Duration;

use agent::report::outcome::Outcome;
use tokio::io::AsyncWriteExt;

use crate::harness::{Proxy, answering, endpoint, run};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// An endpoint that switches, says something at once, and then echoes until the end.
async fn echo() -> std::net::SocketAddr {
    endpoint(|mut client, _| async move {
        let head = client.head().await;
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        client
            .say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nwelcome")
            .await;
        let (mut read, mut write) = client.0.split();
        // It ends with the client.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.write_all(b"bye").await;
    })
    .await
}

#[test]
fn both_ends_talk_past_us_and_end_by_themselves() {
    run(async {
        let proxy = Proxy::http(&[echo().await]).await;
        let mut client = proxy.client().await;
        // What is sent along with the request belongs to the other protocol already.
        client.say(format!("{UPGRADE}early ")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        for field in ["connection: upgrade\r\n", "upgrade: websocket\r\n", "Sec-WebSocket-Accept: x\r\n"] {
            assert!(head.contains(field), "{field:?} in {head}");
        }
        assert!(!head.contains("content-length"), "{head}");
        assert_eq!(client.until("early ").await, "welcomeearly ");
        // A change of the table does not concern it.
        proxy.serve(None);
        client.say("more").await;
        client.until("more").await;
        client.0.shutdown().await.expect("open");
        assert_eq!(client.rest().await, "bye");
        let record = proxy.closed(1).await.remove(0);
        assert_eq!((record.status, record.outcome), (101, Outcome::Complete));
        assert_eq!((record.received, record.sent), (10, 20));
    });
}

#[test]
fn an_endpoint_may_decline() {
    run(async {
        let (address, _) = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.say(UPGRADE).await;
            assert!(client.until("hello").await.starts_with("HTTP/1.1 200 OK\r\n"));
        }
    });
}

#[test]
fn silence_ends_a_tunnel_and_bytes_keep_it() {
    run(async {
        let proxy = Proxy::http(&[echo().await]).await;
        let mut client = proxy.client().await;
        client.say(UPGRADE).await;
        client.until("welcome").await;
        client.say("x").await;
        client.until("x").await;
        let day = Duration::from_secs(24 * 3600);
        proxy.pass(day + Duration::from_secs(1));
        client.say("y").await;
        client.until("y").await;
        proxy.pass(2 * day + Duration::from_secs(2));
        client.say("z").await;
        client.until("z").await;
        proxy.pass(3 * day + Duration::from_secs(3));
        tokio::task::yield_now().await;
        proxy.pass(5 * day);
        client.closed().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::IdleTimeout);
    });
}

#[test]
fn the_end_of_draining_ends_tunnels_and_requests() {
    run(async {
        let proxy = Proxy::http(&[echo().await]).await;
        let mut client = proxy.client().await;
        client.say(UPGRADE).await;
        client.until("welcome").await;
        proxy.local.drain.begin();
        client.say("still").await;
        client.until("still").await;
        proxy.local.drain.end();
        client.closed().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::Drained);

        let asked = std::rc::Rc::new(tokio::sync::Notify::new());
        let tell = asked.clone();
        let address = endpoint(move |mut client, _| {
            let tell = tell.clone();
            async move {
                client.head().await;
                tell.notify_one();
                client.closed().await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        asked.notified().await;
        proxy.local.drain.begin();
        proxy.local.drain.end();
        client.closed().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::Drained);
    });
}

#[test]
fn an_endpoint_that_breaks_off_ends_the_tunnel() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            client.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi").await;
            client.until("stop").await;
            client.0.set_zero_linger().expect("open");
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say(UPGRADE).await;
        client.until("\r\n\r\nhi").await;
        client.say("stop").await;
        client.closed().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::UpstreamClosed);
    });
}
