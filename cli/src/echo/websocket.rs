//! WebSocket (RFC 6455), also over HTTP/2 (RFC 8441): the first message says what was seen, then messages come back.

use super::body::Body;
use super::seen::{Connection, Protocol};
use super::tasks::Tasks;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use runtime::drain;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// The only version of the protocol there is.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// Whether the request asks for a WebSocket, well or badly.
pub fn is_asked<B>(request: &Request<B>) -> bool {
    match request.version() {
        Version::HTTP_2 => {
            let protocol = request.extensions().get::<hyper::ext::Protocol>();
            request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
        }
        Version::HTTP_11 => {
            request.method() == Method::GET
                && lists(request.headers(), CONNECTION, "upgrade")
                && lists(request.headers(), UPGRADE, "websocket")
        }
        _ => false,
    }
}

/// Answers the handshake and leaves a task behind that speaks on the connection once it is handed over.
pub fn accept(connection: &Connection, tasks: &Tasks, mut request: Request<Incoming>) -> Response<Body> {
    if let Some(refusal) = refusal(&request) {
        return refusal;
    }
    let mut response = acceptance(&request);
    if let Some(chosen) = first_subprotocol(request.headers()) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, chosen);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let line = connection.seen_request(Protocol::WebSocket, &parts).line();
    let greeting = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
    let drain = tasks.drain();
    tasks.spawn(async move {
        let outcome = match upgraded.await {
            Ok(io) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
                talk(socket, greeting.into(), drain).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = outcome {
            tracing::debug!(error, "a websocket ended early");
        }
    });
    response
}

async fn talk(
    mut socket: WebSocketStream<TokioIo<Upgraded>>,
    greeting: Utf8Bytes,
    mut drain: drain::Watch,
) -> Result<(), Error> {
    socket.send(Message::Text(greeting)).await?;
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = drain.started() => break,
        };
        match message.transpose()? {
            Some(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message).await?,
            // Pings and closes are answered by the library as it reads on.
            Some(_) => {}
            None => return Ok(()),
        }
    }
    socket.close(Some(CloseFrame { code: CloseCode::Away, reason: "draining".into() })).await?;
    // The peer's close ends the stream; what it had under way before is of no use to it any more.
    while socket.next().await.transpose()?.is_some() {}
    Ok(())
}

/// The answer to a handshake that asks for another version or lacks its key; `None` for a good one.
fn refusal(request: &Request<Incoming>) -> Option<Response<Body>> {
    let is_http2 = request.version() == Version::HTTP_2;
    let mut response = Response::new(Body::empty());
    let version = request.headers().get(SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version != VERSION) {
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, VERSION);
        if !is_http2 {
            // HTTP/2 has no connection headers.
            announce_upgrade(response.headers_mut());
        }
        return Some(response);
    }
    // Over HTTP/2 there is no key.
    if is_http2 || request.headers().contains_key(SEC_WEBSOCKET_KEY) {
        return None;
    }
    *response.status_mut() = StatusCode::BAD_REQUEST;
    *response.body_mut() = Body::from(Bytes::from_static(b"sec-websocket-key: is missing\n"));
    Some(response)
}

/// The answer to a good handshake: 101, or 200 over HTTP/2.
fn acceptance(request: &Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| request.version() != Version::HTTP_2) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let accepted =
            HeaderValue::try_from(derive_accept_key(key.as_bytes())).expect("base64 is a valid header value");
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accepted);
        announce_upgrade(response.headers_mut());
    }
    response
}

fn announce_upgrade(headers: &mut HeaderMap) {
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Clients that offer subprotocols fail unless one is chosen, and an echo suits them all.
fn first_subprotocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    HeaderValue::from_str(offered.split(',').next()?.trim()).ok()
}

/// Whether a header that is a list has this element; case does not count.
fn lists(headers: &HeaderMap, name: HeaderName, element: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(element))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_recognised_however_it_is_spelled() {
        let cases = [
            ("Upgrade", "websocket", true),
            ("keep-alive, Upgrade", "WebSocket", true),
            ("keep-alive", "websocket", false),
            ("upgrade", "h2c", false),
        ];
        for (connection, upgrade, asked) in cases {
            let request = Request::get("/").header(CONNECTION, connection).header(UPGRADE, upgrade).body(()).unwrap();
            assert_eq!(is_asked(&request), asked, "{connection} {upgrade}");
        }
        let post = Request::post("/").header(CONNECTION, "upgrade").header(UPGRADE, "websocket").body(()).unwrap();
        assert!(!is_asked(&post));
    }
}
