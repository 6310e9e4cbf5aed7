//! Requests that two servers could read differently are refused, after what came before them was answered.

use agent::report::outcome::Outcome;

use crate::harness::{Proxy, answering, endpoint, run};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Sends a good request and `bad` behind it: the first is answered, the second refused with `status`, and nothing of it
/// reaches an endpoint.
async fn check(bad: &[u8], status: &str) {
    let (address, heads) = answering(HELLO).await;
    let proxy = Proxy::http(&[address]).await;
    let answer = proxy.ask([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", bad].concat()).await;
    let shown = String::from_utf8_lossy(bad).into_owned();
    let rest = answer.strip_prefix("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap_or_default();
    assert!(rest.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer:?}");
    assert!(rest.contains("proxy-status: portico; error=http_request_error; details="), "{shown:?}: {rest:?}");
    assert!(rest.contains("connection: close\r\n") && rest.ends_with("\n"), "{shown:?}: {rest:?}");
    assert_eq!(heads.borrow().len(), 1, "{shown:?}");
}

#[test]
fn ambiguous_heads_are_refused() {
    run(async {
        let shapes: &[&[u8]] = &[
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4,4\r\n\r\nbody",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nbody",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        ];
        for shape in shapes {
            check(shape, "400").await;
        }
    });
}

#[test]
fn heads_that_are_too_large_are_refused() {
    run(async {
        check(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(17 << 10)).as_bytes(), "431").await;
        check(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(60)).as_bytes(), "431").await;
    });
}

#[test]
fn ambiguous_chunks_are_refused() {
    run(async {
        for body in [
            "5 \r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "x\r\n",
            "\r\n",
            "5;\0\r\nhello\r\n0\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
        ] {
            // Takes what comes and says nothing; the proxy answers in its place.
            let address = endpoint(|mut client, _| async move {
                client.rest().await;
            })
            .await;
            let proxy = Proxy::http(&[address]).await;
            let answer =
                proxy.ask(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
            assert!(
                answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close\r\n"),
                "{body:?}: {answer:?}"
            );
            assert!(matches!(proxy.outcomes()[..], [Outcome::Malformed(_)]), "{body:?}");
        }
    });
}

#[test]
fn what_a_length_leaves_over_is_the_next_request() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            loop {
                let head = client.head().await;
                if head.starts_with("POST") {
                    client.until("body").await;
                }
                client.say(HELLO).await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let answer = proxy
            .ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(answer.matches("hello").count(), 2, "{answer}");
        assert_eq!(proxy.records().len(), 2);
    });
}

#[test]
fn a_clean_text_upgrade_to_http2_is_not_passed_on() {
    run(async {
        let (address, heads) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client
            .say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n")
            .await;
        client.until("hello").await;
        assert!(!heads.borrow()[0].to_lowercase().contains("upgrade"), "{:?}", heads.borrow());
    });
}
