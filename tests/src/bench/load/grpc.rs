//! Unary calls over HTTP/2: several streams on a connection, each with one call after the other.

use std::{rc::Rc, time::Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use super::{LocalExecutor, Tally, ensure_echo, stamp};
use crate::bench::scenario::{GRPC_MESSAGE, GRPC_STREAMS};

/// Compressed or not, and the length of the message.
const FRAMING: usize = 5;

/// Calls on one connection until told to stop.
pub async fn drive(stream: TcpStream, tally: Rc<Tally>) -> Result<()> {
    let (sender, connection) =
        http2::handshake(LocalExecutor, TokioIo::new(stream)).await.context("begin an HTTP/2 connection")?;
    let connection = tokio::task::spawn_local(connection);
    let mut streams = JoinSet::new();
    for number in 0..GRPC_STREAMS as u64 {
        streams.spawn_local(calls(sender.clone(), number << 32, tally.clone()));
    }
    drop(sender);
    while let Some(ended) = streams.join_next().await {
        ended.context("a stream panicked")??;
    }
    connection.await.context("the connection panicked")?.context("end an HTTP/2 connection")
}

async fn calls(mut sender: SendRequest<Full<Bytes>>, first: u64, tally: Rc<Tally>) -> Result<()> {
    let mut framed = [0; FRAMING + GRPC_MESSAGE];
    framed[1..FRAMING].copy_from_slice(&(GRPC_MESSAGE as u32).to_be_bytes());
    for number in first.. {
        stamp(&mut framed[FRAMING..], number);
        let begin = Instant::now();
        call(&mut sender, Bytes::copy_from_slice(&framed)).await?;
        if !tally.answered(begin) {
            break;
        }
    }
    Ok(())
}

async fn call(sender: &mut SendRequest<Full<Bytes>>, message: Bytes) -> Result<()> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://bench.default/bench.Echo/Unary")
        .header(CONTENT_TYPE, "application/grpc")
        .header("te", "trailers")
        .body(Full::new(message.clone()))
        .context("build a call")?;
    sender.ready().await.context("await room for a call")?;
    let response = sender.send_request(request).await.context("send a call")?;
    ensure!(response.status() == StatusCode::OK, "expected status 200, got {:?}", response);
    let early = response.headers().get("grpc-status").cloned();
    let body = response.into_body().collect().await.context("read an answer")?;
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).or(early.as_ref());
    ensure!(status.is_some_and(|status| status == "0"), "expected grpc-status 0, got {status:?}");
    ensure_echo(&message, &body.to_bytes())
}
