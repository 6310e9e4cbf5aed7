//! HTTP requests: what each path answers.

use super::body::{self, Body, Events, Sized};
use super::grpc::{self, Rpc};
use super::pattern::{self, Pattern};
use super::seen::{Connection, Fields, Protocol};
use super::tasks::Tasks;
use super::websocket;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use runtime::args::parse::number;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The longest `/delay`, in milliseconds: longer than any timeout in front of a backend should be.
const DELAY_LIMIT: u64 = 600_000;

/// What the requests of one connection share.
#[derive(Clone, Debug)]
pub struct Session {
    /// The connection they came by.
    pub connection: Arc<Connection>,
    /// Where gRPC calls go.
    pub rpc: Rpc,
    /// Where tasks that outlive a request go.
    pub tasks: Tasks,
}

/// `/close` was asked for: the connection, or the stream of HTTP/2, ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the client asked for no answer")]
pub struct Unanswered;

/// What a path asks for.
#[derive(Debug, PartialEq)]
enum Route {
    Seen,
    Bytes(u64, Sized),
    Delay(Duration),
    Status(StatusCode),
    Upload,
    Trailers,
    Close,
    Events { count: u32, interval: Duration },
}

/// Answers one request.
///
/// # Errors
/// [`Unanswered`], which makes hyper end the connection.
pub async fn answer(session: Session, request: Request<Incoming>) -> Result<Response<Body>, Unanswered> {
    if grpc::is_asked(&request) {
        return Ok(session.rpc.answer(&session.connection, request).await);
    }
    if websocket::is_asked(&request) {
        return Ok(websocket::accept(&session.connection, &session.tasks, request));
    }
    let (request, body) = request.into_parts();
    let route = route(request.uri.path(), request.uri.query());
    if route == Ok(Route::Close) {
        return Err(Unanswered);
    }
    // Read to the end on every path, so that the connection can be used again, and so that "100 Continue" is sent.
    let mut digest = (route == Ok(Route::Upload)).then(blake3::Hasher::new);
    let consumed = body::consume(body, |piece| {
        if let Some(digest) = &mut digest {
            digest.update(piece);
        }
    })
    .await;
    let (length, trailers) = match consumed {
        Ok(consumed) => consumed,
        // Malformed, or cut off; in the latter case nobody is left to read this.
        Err(error) => return Ok(wrong(format!("body: {error}"))),
    };
    if let Ok(Route::Delay(duration)) = route {
        tokio::time::sleep(duration).await;
    }

    let mut seen = session.connection.seen_request(Protocol::of(request.version), &request);
    seen.body_bytes = Some(length);
    seen.trailers = trailers.as_ref().map(Fields);
    seen.blake3 = digest.map(|digest| digest.finalize().to_hex().to_string());
    let mut response = match route {
        Ok(route) => respond(route, || seen.line(), &session.connection),
        Err(problem) => wrong(problem),
    };
    if request.method == Method::HEAD {
        strip(&mut response);
    }
    Ok(response)
}

fn respond(route: Route, line: impl FnOnce() -> Bytes, connection: &Connection) -> Response<Body> {
    match route {
        Route::Bytes(length, sized) => typed("application/octet-stream", Body::Pattern(Pattern::new(length), sized)),
        Route::Events { count, interval } => {
            typed("text/event-stream", Body::Events(Events::new(count, interval, line())))
        }
        Route::Trailers => with_trailers(line(), connection),
        // These have no body, whatever the method (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
        Route::Status(status @ (StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response
        }
        Route::Status(status) => {
            let mut response = typed("application/json", line().into());
            *response.status_mut() = status;
            response
        }
        Route::Seen | Route::Delay(_) | Route::Upload | Route::Close => typed("application/json", line().into()),
    }
}

fn typed(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn wrong(problem: String) -> Response<Body> {
    let mut response = typed("text/plain; charset=utf-8", Bytes::from(problem + "\n").into());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// HTTP/1.1 sends trailers only to clients that said `TE: trailers`, and only those announced in `Trailer`.
fn with_trailers(line: Bytes, connection: &Connection) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    let digest = blake3::hash(&line).to_hex();
    trailers.insert("x-echo-blake3", HeaderValue::from_str(&digest).expect("hexadecimal is a valid header value"));
    // A name from the command line may hold bytes that a header cannot.
    if let Ok(pod) = HeaderValue::from_str(&connection.identity.pod) {
        trailers.insert("x-echo-pod", pod);
    }
    let mut response = typed("application/json", Body::WithTrailers(Some(line), Some(trailers)));
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-echo-blake3, x-echo-pod"));
    response
}

/// Turns the answer to GET into that to HEAD: the same headers, with the length that the body would have had.
fn strip(response: &mut Response<Body>) {
    let length = response.body().size_hint().exact().filter(|length| *length > 0);
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Body::empty();
}

/// What a target asks for, or what is wrong with it. Paths without a meaning of their own answer what was seen.
fn route(path: &str, query: Option<&str>) -> Result<Route, String> {
    let mut segments = path.trim_matches('/').split('/');
    let route = match (segments.next(), segments.next(), segments.next()) {
        (Some("bytes"), Some(length), None) => {
            let sized = if option(query, "chunked").is_some() { Sized::Unknown } else { Sized::Known };
            Route::Bytes(value("/bytes", length, 0..=pattern::LIMIT)?, sized)
        }
        (Some("delay"), Some(millis), None) => {
            Route::Delay(Duration::from_millis(value("/delay", millis, 0..=DELAY_LIMIT)?))
        }
        (Some("status"), Some(code), None) => {
            let code = value("/status", code, 200..=999u16)?;
            Route::Status(StatusCode::from_u16(code).map_err(|error| format!("/status: {error}"))?)
        }
        (Some("sse"), None, None) => Route::Events {
            count: value("count", option(query, "count").unwrap_or("5"), 0..=100_000u32)?,
            interval: Duration::from_millis(value(
                "interval",
                option(query, "interval").unwrap_or("100"),
                1..=DELAY_LIMIT,
            )?),
        },
        (Some("upload"), None, None) => Route::Upload,
        (Some("trailers"), None, None) => Route::Trailers,
        (Some("close"), None, None) => Route::Close,
        _ => Route::Seen,
    };
    Ok(route)
}

fn value<T: FromStr + PartialOrd + Display>(field: &str, raw: &str, bounds: RangeInclusive<T>) -> Result<T, String> {
    let expected = format!("give a number from {} to {}", bounds.start(), bounds.end());
    number(bounds)(raw).map_err(|failure| format!("{field}: {raw:?} {failure}; {expected}"))
}

/// The value of a query parameter; empty if it stands there without one.
fn option<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, expected: Result<Route, &str>) {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        assert_eq!(
            route(path, query).as_ref().map_err(String::as_str),
            expected.as_ref().map_err(|text| *text),
            "{target}"
        );
    }

    #[test]
    fn targets_have_meanings() {
        let seconds = Duration::from_secs;
        check("/", Ok(Route::Seen));
        check("/any/thing?at=all", Ok(Route::Seen));
        check("*", Ok(Route::Seen));
        check("/bytes", Ok(Route::Seen));
        check("/bytes/1/2", Ok(Route::Seen));
        check("/bytes/0", Ok(Route::Bytes(0, Sized::Known)));
        check("/bytes/2147483648?chunked", Ok(Route::Bytes(2 << 30, Sized::Unknown)));
        check("/bytes/7?x=y&chunked=1", Ok(Route::Bytes(7, Sized::Unknown)));
        check("/delay/2000", Ok(Route::Delay(seconds(2))));
        check("/status/503", Ok(Route::Status(StatusCode::SERVICE_UNAVAILABLE)));
        check("/upload", Ok(Route::Upload));
        check("/trailers", Ok(Route::Trailers));
        check("/close/", Ok(Route::Close));
        check("/sse", Ok(Route::Events { count: 5, interval: Duration::from_millis(100) }));
        check("/sse?count=2&interval=1000", Ok(Route::Events { count: 2, interval: seconds(1) }));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_with_the_range() {
        check(
            "/bytes/2147483649",
            Err("/bytes: \"2147483649\" is not between 0 and 2147483648; give a number from 0 to 2147483648"),
        );
        check("/bytes/-1", Err("/bytes: \"-1\" is not between 0 and 2147483648; give a number from 0 to 2147483648"));
        check("/delay/soon", Err("/delay: \"soon\" is not a number; give a number from 0 to 600000"));
        check("/status/101", Err("/status: \"101\" is not between 200 and 999; give a number from 200 to 999"));
        check("/sse?interval=0", Err("interval: \"0\" is not between 1 and 600000; give a number from 1 to 600000"));
    }
}
