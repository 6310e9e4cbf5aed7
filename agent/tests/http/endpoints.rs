//! Endpoints that do not speak HTTP, or not well.

use agent::report::outcome::Outcome;

use crate::harness::{Proxy, endpoint, run};

/// What a client gets when the endpoint answers `answer` and closes, and how the request ended.
async fn check(answer: &'static [u8], expected: &str, outcome: Outcome) {
    let address = endpoint(move |mut client, _| async move {
        client.head().await;
        client.say(answer).await;
    })
    .await;
    let proxy = Proxy::http(&[address]).await;
    let got = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let shown = String::from_utf8_lossy(answer);
    assert!(got.starts_with(expected), "{shown:?}: {got:?}");
    assert_eq!(proxy.outcomes(), [outcome], "{shown:?}");
}

#[test]
fn answers_that_are_not_http_are_not_passed_on() {
    run(async {
        for answer in [
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n".as_slice(),
            b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\n\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        ] {
            check(answer, "HTTP/1.1 502 Bad Gateway\r\n", Outcome::UpstreamProtocol).await;
        }
    });
}

#[test]
fn answers_that_end_early_are_not_taken_for_complete() {
    run(async {
        check(b"", "HTTP/1.1 502 ", Outcome::UpstreamClosed).await;
        check(b"HTTP/1.1 200 OK\r\nContent-", "HTTP/1.1 502 ", Outcome::UpstreamClosed).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nconnection: close\r\n\r\nhello";
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", head, Outcome::UpstreamClosed).await;
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n";
        check(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", chunked, Outcome::UpstreamClosed)
            .await;
        check(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz",
            chunked,
            Outcome::UpstreamProtocol,
        )
        .await;
    });
}

#[test]
fn a_truncated_chunked_answer_has_no_last_chunk() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            client.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let got = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(!got.ends_with("0\r\n\r\n"), "{got:?}");
    });
}

#[test]
fn an_answer_may_end_with_its_connection() {
    run(async {
        let expected = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            client.say("HTTP/1.1 200 OK\r\n\r\nhello").await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(client.until("\r\n0\r\n\r\n").await, expected);
        }
        assert_eq!(proxy.closed(2).await[1].outcome, Outcome::Complete);
    });
}

#[test]
fn bytes_behind_an_answer_are_nobodys() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            client
                .say(
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
                )
                .await;
            client.rest().await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(client.until("\r\n\r\nhello").await.contains("Content-Length: 5"));
        }
        assert!(!proxy.closed(2).await[1].attempts[0].reused);
    });
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            client.head().await;
            client.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await;
        client.say(vec![b'x'; 10_000]).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("connection: close\r\n"), "{head}");
        // Some more of the body does not cost the client the end of the connection.
        client.say(vec![b'x'; 10_000]).await;
        client.closed().await;
    });
}
