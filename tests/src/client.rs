//! A plain HTTP/1.1 client that says which address it comes from.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpSocket;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// A kept-alive connection.
pub struct Client {
    send: SendRequest<Full<Bytes>>,
}

// === impl Client ===

impl Client {
    /// Connects from an address of the loopback range.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(async move {
            // Its end shows in the requests.
            let _ = connection.await;
        });
        Ok(Self { send })
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// Those of the connection and of HTTP.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.send.ready().await?;
        let (head, body) = self.send.send_request(request).await?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }

    /// GET of a path at a host.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer, hyper::Error> {
        let request = Request::get(path).header("host", host).body(Full::default());
        self.send(request.expect("the parts are valid")).await
    }
}

// === impl Answer ===

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", self.body))
    }

    /// A string field of the body.
    pub fn field(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_else(|| panic!("no {name} in {:?}", self.body)).to_owned()
    }

    /// A header as text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// One GET on a connection of its own; panics if there is no answer.
pub async fn get(from: IpAddr, to: SocketAddr, host: &str, path: &str) -> Answer {
    let mut client = Client::connect(from, to).await.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    client.get(host, path).await.unwrap_or_else(|error| panic!("GET {path} of {host} at {to}: {error}"))
}
