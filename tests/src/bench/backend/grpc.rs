//! Unary gRPC calls, answered with their own message: HTTP/2 by hyper, framing passed through as it came.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::bench::{load::LocalExecutor, scenario};

/// Serves one connection until it ends.
pub async fn serve(stream: TcpStream) {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(request).await));
    // How the connection ended is seen by the client.
    let _ = http2::Builder::new(LocalExecutor).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>> {
    let known = request.headers().get("x-forwarded-for").is_some_and(|value| scenario::names_client(value.as_bytes()));
    let (message, status) = match request.into_body().collect().await {
        Ok(body) if known => (body.to_bytes(), "0"),
        // Invalid argument.
        Ok(_) => (Bytes::new(), "3"),
        // Cancelled.
        Err(_) => (Bytes::new(), "1"),
    };
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
    let mut response = Response::new(Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers)))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
