//! The bodies of answers, with a short way for the common one.

use super::pattern::Pattern;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it at once; `None` after it was taken, or if there is none.
    Full(Option<Bytes>),
    /// All of it at once, then trailers.
    WithTrailers(Option<Bytes>, Option<HeaderMap>),
    /// The stream of `/bytes/N`, with or without its length known beforehand.
    Pattern(Pattern, Sized),
    /// Server-sent events.
    Events(Events),
    /// The answer of a gRPC service.
    Rpc(tonic::body::Body),
}

/// Whether HTTP may announce the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sized {
    /// As `content-length`.
    Known,
    /// Not announced: HTTP/1.1 sends chunks.
    Unknown,
}

/// Server-sent events, one per tick.
#[derive(Debug)]
pub struct Events {
    ticks: tokio::time::Interval,
    data: Bytes,
    sent: u32,
    count: u32,
}

// === impl Body ===

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Body::Full(None)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Full(Some(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.get_mut() {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(data)),
            Body::WithTrailers(bytes, trailers) => {
                let trailers = || trailers.take().map(|trailers| Ok(Frame::trailers(trailers)));
                Poll::Ready(bytes.take().map(data).or_else(trailers))
            }
            Body::Pattern(pattern, _) => Poll::Ready(pattern.next().map(data)),
            Body::Events(events) => events.poll(cx).map(|event| event.map(data)),
            Body::Rpc(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_none(),
            Body::WithTrailers(bytes, trailers) => bytes.is_none() && trailers.is_none(),
            Body::Pattern(pattern, _) => pattern.remaining() == 0,
            Body::Events(events) => events.sent == events.count,
            Body::Rpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Pattern(pattern, Sized::Known) => SizeHint::with_exact(pattern.remaining()),
            // An exact length would make HTTP/1.1 send a content-length, and with it no chunks and no trailers.
            Body::Pattern(_, Sized::Unknown) | Body::WithTrailers(..) | Body::Events(_) => SizeHint::default(),
            Body::Rpc(body) => body.size_hint(),
        }
    }
}

fn data<E>(bytes: Bytes) -> Result<Frame<Bytes>, E> {
    Ok(Frame::data(bytes))
}

// === impl Events ===

impl Events {
    /// `count` events with `data`, the first at once and then one per `interval`, which must not be zero.
    pub fn new(count: u32, interval: Duration, data: Bytes) -> Self {
        Events { ticks: tokio::time::interval(interval), data, sent: 0, count }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.sent == self.count {
            return Poll::Ready(None);
        }
        std::task::ready!(self.ticks.poll_tick(cx));
        let mut event = format!("id: {}\nevent: seen\ndata: ", self.sent).into_bytes();
        event.extend_from_slice(self.data.trim_ascii_end());
        event.extend_from_slice(b"\n\n");
        self.sent += 1;
        Poll::Ready(Some(event.into()))
    }
}

/// Reads a body to its end, hands each piece to `take`, and returns the number of bytes and the trailers.
///
/// # Errors
/// The body's own: it ended early or was malformed.
pub async fn consume<B>(mut body: B, mut take: impl FnMut(&[u8])) -> Result<(u64, Option<HeaderMap>), B::Error>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let (mut length, mut trailers) = (0, None);
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(bytes) => {
                length += bytes.len() as u64;
                take(&bytes);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((length, trailers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    async fn collect(body: Body) -> (Vec<u8>, Option<HeaderMap>) {
        let mut bytes = Vec::new();
        let (length, trailers) = consume(body, |piece| bytes.extend_from_slice(piece)).await.unwrap();
        assert_eq!(length, bytes.len() as u64);
        (bytes, trailers)
    }

    #[tokio::test]
    async fn lengths_are_announced_only_where_they_are_known_and_wanted() {
        let cases = [
            (Body::empty(), Some(0), 0),
            (Body::from(Bytes::from_static(b"abc")), Some(3), 3),
            (Body::Pattern(Pattern::new(100_000), Sized::Known), Some(100_000), 100_000),
            (Body::Pattern(Pattern::new(100_000), Sized::Unknown), None, 100_000),
            (Body::WithTrailers(Some(Bytes::from_static(b"abc")), None), None, 3),
        ];
        for (body, announced, length) in cases {
            assert_eq!(body.size_hint().exact(), announced, "{body:?}");
            assert_eq!(collect(body).await.0.len(), length);
        }
    }

    #[tokio::test]
    async fn trailers_follow_the_data() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", "1".parse().unwrap());
        let body = Body::WithTrailers(Some(Bytes::from_static(b"abc")), Some(trailers.clone()));
        assert_eq!(collect(body).await, (b"abc".to_vec(), Some(trailers)));
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_numbered_and_paced() {
        let began = tokio::time::Instant::now();
        let events = Events::new(3, Duration::from_secs(1), Bytes::from_static(b"{}\n"));
        let text = String::from_utf8(collect(Body::Events(events)).await.0).unwrap();
        let expected =
            "id: 0\nevent: seen\ndata: {}\n\nid: 1\nevent: seen\ndata: {}\n\nid: 2\nevent: seen\ndata: {}\n\n";
        assert_eq!(text, expected);
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }
}
