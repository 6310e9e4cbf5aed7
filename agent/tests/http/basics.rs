//! What every request relies on.

use agent::report::outcome::Outcome;
use api::resource::service::AppProtocol;

use crate::harness::{Proxy, answering, endpoint, limits, run, target};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello";

#[test]
fn requests_share_connections_on_both_sides() {
    run(async {
        let (address, heads) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        for _ in 0..3 {
            client
                .say("GET /a?b HTTP/1.1\r\nHost: web.shop\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\n")
                .await;
            assert_eq!(client.until("hello").await, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello");
        }
        let records = proxy.closed(3).await;
        assert_eq!(proxy.outcomes(), [Outcome::Complete; 3]);
        let reused: Vec<bool> = records.iter().map(|record| record.attempts[0].reused).collect();
        assert_eq!(reused, [false, true, true]);
        assert_eq!((records[0].sent, records[0].status), (5, 200));

        let head = &heads.borrow()[2];
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\nhost: web.shop\r\n"), "{head}");
        for field in
            ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: web.shop", "traceparent: 00-"]
        {
            assert!(head.contains(field), "{field} in {head}");
        }
        assert!(!head.contains("x-hop") && !head.contains("connection"), "{head}");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            loop {
                let head = client.head().await;
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                client.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())).await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let requests: String = (0..20).map(|number| format!("GET /{number:02} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        let mut client = proxy.client().await;
        client.say(requests).await;
        for number in 0..20 {
            client.until(&format!("\r\n\r\n/{number:02}")).await;
        }
    });
}

#[test]
fn bodies_pass_whatever_their_framing() {
    run(async {
        // Answers with what it was sent, framed in the same way.
        let address = endpoint(|mut client, _| async move {
            loop {
                let head = client.head().await;
                if head.contains("transfer-encoding: chunked") {
                    let body = client.until("0\r\n\r\n").await;
                    client.say(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
                } else {
                    assert!(head.contains("content-length: 5\r\n"), "{head}");
                    let body = client.until("hello").await;
                    client.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}")).await;
                }
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(client.until("\r\n\r\nhello").await.contains("Content-Length: 5\r\n"));
        client
            .say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n")
            .await;
        let answer = client.until("0\r\n\r\n").await;
        assert!(
            answer.contains("transfer-encoding: chunked\r\n") && answer.contains("3\r\nhel\r\n2\r\nlo\r\n"),
            "{answer}"
        );
        let records = proxy.closed(2).await;
        assert_eq!((records[1].received, records[1].sent), (5, 5));
    });
}

#[test]
fn answers_without_a_body_have_none() {
    run(async {
        let answers = [
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "Content-Length: 5\r\n\r\n"),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
            (
                "GET",
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: x\r\n\r\n",
                "Content-Length: 9\r\nETag: x\r\n\r\n",
            ),
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "Content-Length: 0\r\n\r\n"),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
        ];
        for (method, answer, expected) in answers {
            let (address, _) = answering(answer).await;
            let proxy = Proxy::http(&[address]).await;
            let mut client = proxy.client().await;
            for _ in 0..2 {
                client.say(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                let head = client.head().await;
                assert!(head.ends_with(expected), "{head:?}");
            }
            assert!(proxy.closed(2).await[1].attempts[0].reused);
        }
    });
}

#[test]
fn old_clients_get_what_they_understand() {
    run(async {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let (address, heads) = answering(chunked).await;
        let proxy = Proxy::http(&[address]).await;
        let answer = proxy.ask("GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello");
        assert!(heads.borrow()[0].contains(&format!("host: {}\r\n", proxy.address)));

        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.say("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
            assert!(client.until("hello").await.contains("connection: keep-alive\r\n"));
        }
    });
}

#[test]
fn a_client_that_wants_to_close_is_let_go() {
    run(async {
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("hello"), "{answer}");
    });
}

#[test]
fn our_own_answers_say_what_is_wrong() {
    run(async {
        let proxy = Proxy::start(limits(), target(AppProtocol::Http, &[])).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.until("endpoints`\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        assert!(answer.contains("proxy-status: portico; error=destination_unavailable; details=\"NO_ENDPOINTS\"\r\n"));
        client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n").await;
        let answer = client.head().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("grpc-status: 14\r\n"), "{answer}");
        let records = proxy.closed(2).await;
        assert_eq!((records[0].status, records[1].status, records[1].grpc_status), (503, 200, Some(14)));
    });
}

#[test]
fn each_request_takes_the_table_of_its_moment() {
    run(async {
        let (first, _) = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst").await;
        let (second, _) = answering("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond").await;
        let proxy = Proxy::http(&[first]).await;
        let mut client = proxy.client().await;
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.until("first").await;
        proxy.serve(Some(target(AppProtocol::Http, &[second])));
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.until("second").await;
        proxy.serve(None);
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 404 "));
    });
}

#[test]
fn an_idle_connection_is_small() {
    run(async {
        let proxy = Proxy::http(&[]).await;
        let peer = proxy.address;
        let downstream = agent::report::record::Downstream {
            peer,
            local: peer,
            client: peer,
            client_source: agent::report::record::ClientSource::Peer,
            frontend: agent::table::FrontendKind::Route,
            server_name: None,
            tls: false,
        };
        let (stream, _other) = tokio::io::duplex(1);
        let route = agent::listen::http::HttpRoute::Shared;
        let future = agent::listen::http::serve(proxy.local.clone(), stream, downstream.into(), route, Some(false));
        // Thousands of connections idle at once, so this is most of the memory of a busy node.
        let size = std::mem::size_of_val(&future);
        assert!(size <= 5 << 10, "{size} bytes");
    });
}
