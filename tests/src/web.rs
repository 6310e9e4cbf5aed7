//! HTTP/1.1 and HTTP/2 clients whose bodies are streams, and what is to be known of a stream: its length and digest.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cli::echo::pattern::Pattern;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// The body of a request.
pub type Body = BoxBody<Bytes, Infallible>;

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge.
    Http2,
}

/// A connection.
pub enum Web {
    /// HTTP/1.1: one request at a time.
    Http1(http1::SendRequest<Body>),
    /// HTTP/2.
    Http2(http2::SendRequest<Body>),
}

/// What a stream held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Bytes.
    pub length: u64,
    /// BLAKE3, in hexadecimal.
    pub blake3: String,
}

// === impl Web ===

impl Web {
    /// Connects.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn connect(version: Version, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Self::over(version, stream).await
    }

    /// Speaks on a connection that there is already.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn over<S>(version: Version, stream: S) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match version {
            Version::Http1 => {
                let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
                // Its end shows in the requests.
                tokio::spawn(connection.with_upgrades());
                Ok(Self::Http1(send))
            }
            Version::Http2 => {
                let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(Self::Http2(send))
            }
        }
    }

    /// Sends a request; its target is a whole URL for either version. The body of the answer is still to be read.
    ///
    /// # Errors
    /// Those of the connection and of HTTP.
    pub async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(send) => {
                let host = request.uri().authority().expect("a whole URL").as_str().parse().expect("a host");
                request.headers_mut().insert(http::header::HOST, host);
                let target = request.uri().path_and_query().expect("a whole URL").as_str().parse();
                *request.uri_mut() = target.expect("a path");
                send.ready().await?;
                send.send_request(request).await
            }
            Self::Http2(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
        }
    }

    /// GET of a path, read to its end: head, body and trailers.
    ///
    /// # Errors
    /// As [`Web::send`].
    pub async fn get(&mut self, path: &str) -> hyper::Result<(Response<Bytes>, Option<HeaderMap>)> {
        let request = Request::get(format!("http://web{path}")).header("te", "trailers").body(empty());
        let (head, body) = self.send(request.expect("a valid request")).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok((Response::from_parts(head, body.to_bytes()), trailers))
    }
}

/// No body.
pub fn empty() -> Body {
    Empty::new().boxed()
}

/// The bytes of `/bytes/N` as a body of unknown length, with trailers at its end if there are any.
pub fn pattern(length: u64, trailers: Option<HeaderMap>) -> Body {
    let data = Pattern::new(length).map(Frame::data);
    let frames = data.chain(trailers.map(Frame::trailers)).map(Ok);
    StreamBody::new(futures::stream::iter(frames)).boxed()
}

/// What `/bytes/N` holds.
pub fn digest_of_pattern(length: u64) -> Digest {
    let mut hasher = blake3::Hasher::new();
    Pattern::new(length).for_each(|chunk| {
        hasher.update(&chunk);
    });
    Digest { length, blake3: hasher.finalize().to_hex().to_string() }
}

/// Reads a body to its end.
///
/// # Errors
/// Those of the connection and of HTTP.
///
/// # Panics
/// When nothing comes for half a minute.
pub async fn digest(mut body: Incoming) -> hyper::Result<Digest> {
    let (mut length, mut hasher) = (0, blake3::Hasher::new());
    let patience = Duration::from_secs(30);
    while let Some(frame) = tokio::time::timeout(patience, body.frame()).await.expect("the body goes on") {
        if let Some(data) = frame?.data_ref() {
            length += data.len() as u64;
            hasher.update(data);
        }
    }
    Ok(Digest { length, blake3: hasher.finalize().to_hex().to_string() })
}
