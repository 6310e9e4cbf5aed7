//! One stream of a client: a request and its answer, or a tunnel.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, ext::Protocol, server::SendResponse};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;

use crate::{
    forward::{
        body::RequestBody,
        http::{Session, forward},
        reply::{Reply, ReplyBody},
        tunnel::{self, End},
    },
    http2::{
        bytes::StreamBytes,
        incoming::Incoming,
        outgoing::{Outgoing, Stopped},
    },
};

/// Serves a stream to its end. A client that takes it back ends it.
pub async fn serve(session: Rc<Session>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    if let Some(protocol) = request.extensions().get::<Protocol>().cloned() {
        // Boxed, so that it does not make every request as large as itself.
        return Box::pin(serve_tunnel(session, request, respond, protocol)).await;
    }
    let alarm = session.local.alarms.alarm();
    let (mut head, stream) = request.into_parts();
    let incoming = Incoming::new(stream, &head.headers);
    // Informational answers have no way through the codec, so none is asked for.
    head.headers.remove(header::EXPECT);
    let request = Request::from_parts(head, RequestBody::http2(incoming));
    let reply = pin!(forward(&session, request, false, &alarm, |_| ()));
    if let Some(reply) = unless_reset(&mut respond, reply).await {
        answer(respond, reply.into_mapped().0).await;
    }
}

/// What `answer` comes to; `None` if the client takes the stream back before.
async fn unless_reset(
    respond: &mut SendResponse<Bytes>,
    mut answer: Pin<&mut impl Future<Output = Reply>>,
) -> Option<Reply> {
    poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(reply) => Poll::Ready(Some(reply)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await
}

/// Sends an answer.
async fn answer(mut respond: SendResponse<Bytes>, response: Response<ReplyBody>) {
    let (mut head, mut body) = response.into_parts();
    let bodiless = body.is_end_stream();
    if !bodiless && let Some(length) = body.size_hint().exact() {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), bodiless) else {
        // The client has taken the stream back; the body closes the record.
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    if bodiless {
        return;
    }
    let mut outgoing = Outgoing::new(stream);
    let sent = poll_fn(|cx| {
        let sent = outgoing.poll_send(cx, &mut body);
        if outgoing.is_held() {
            // Nobody asks for more of the answer now, but the request goes on.
            body.poll_upload(cx);
        }
        sent
    });
    if let Err(Stopped::Body(error)) = sent.await {
        outgoing.reset(error.reason());
    }
}

/// Serves extended CONNECT (RFC 8441).
async fn serve_tunnel(
    session: Rc<Session>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    protocol: Protocol,
) {
    let alarm = session.local.alarms.alarm();
    let (head, receive) = request.into_parts();
    let request = as_upgrade(Request::from_parts(head, RequestBody::empty()), &protocol);
    let reply = pin!(forward(&session, request, true, &alarm, |_| ()));
    let Some(reply) = unless_reset(&mut respond, reply).await else { return };
    let (mut response, tunnel) = reply.into_mapped();
    let Some(tunnel) = tunnel else {
        if response.status().is_success() {
            // To this client, success would mean that the tunnel stands.
            *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
        }
        return answer(respond, response).await;
    };
    // HTTP/2 has no 101: the stream is the connection (RFC 8441 section 5).
    *response.status_mut() = StatusCode::OK;
    for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
        response.headers_mut().remove(name);
    }
    // Without the stream the tunnel is dropped, which closes the record.
    let Ok(send) = respond.send_response(response.map(drop), false) else { return };
    let (stream, read, account) = tunnel.open();
    let client = End { io: StreamBytes::new(send, receive), read: BytesMut::new() };
    let passed = tunnel::run(&session.local, client, End { io: stream, read }, &alarm).await;
    account.close(passed);
}

/// Extended CONNECT as the upgrade of HTTP/1.1 that means the same (RFC 8441 section 5.1). A protocol that has no name there
/// stays CONNECT, which is refused.
fn as_upgrade(mut request: Request<RequestBody>, protocol: &Protocol) -> Request<RequestBody> {
    let Ok(protocol) = HeaderValue::from_str(protocol.as_str()) else { return request };
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.remove(header::EXPECT);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    if let Ok(key) = HeaderValue::from_bytes(&websocket_key()) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    request
}

/// 16 random bytes in base64, which HTTP/1.1 wants and HTTP/2 leaves out.
fn websocket_key() -> [u8; 24] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key = [b'='; 24];
    // 128 bits are 21 digits of 6 bits and one of 2 bits, followed by two signs that fill up.
    for digit in &mut key[..21] {
        *digit = DIGITS[fastrand::usize(..64)];
    }
    key[21] = DIGITS[fastrand::usize(..4) << 4];
    key
}
