//! `kubectl logs`: the log of a container's latest run or of the one before, whole or its end, and what is still to come.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::{Body, Refusal, pairs};
use crate::kubelet::running::{Name, Running};

/// How often it is looked whether a log that is followed has grown.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes read from a log at a time.
const CHUNK: u64 = 64 * 1024;

/// Which part of which log.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    follow: bool,
    previous: bool,
    /// The last lines; `None` is all of them.
    tail: Option<usize>,
    /// How many bytes at most.
    limit: u64,
}

/// The log that a request asks for.
pub fn answer(state: &Path, running: &Running, name: Name, query: &str) -> Result<Response<Body>, Refusal> {
    let query = Query::parse(query)?;
    let Some(log) = find(state, &name, query.previous) else {
        let run = if query.previous { "previous run" } else { "run" };
        let text = format!("container {:?} of Pod {}/{} has had no {run}", name.container, name.namespace, name.pod);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    };
    let running = running.clone();
    let chunks = read(log.clone(), query, move || running.writes(&name, &log));
    let body = StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk))));
    Ok(Response::new(http_body_util::BodyExt::boxed(body)))
}

// === impl Query ===

impl Query {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let mut query = Self { follow: false, previous: false, tail: None, limit: u64::MAX };
        for (name, value) in pairs(text) {
            let wrong = || Refusal::new(StatusCode::BAD_REQUEST, format!("{name} has the value {value:?}"));
            match name.as_str() {
                "follow" => query.follow = value.parse().map_err(|_| wrong())?,
                "previous" => query.previous = value.parse().map_err(|_| wrong())?,
                "tailLines" => query.tail = Some(value.parse().map_err(|_| wrong())?),
                "limitBytes" => query.limit = value.parse().map_err(|_| wrong())?,
                "timestamps" if value == "false" => {}
                "timestamps" | "sinceSeconds" | "sinceTime" => {
                    let text = format!("logs of the sandbox do not say when a line was written; leave out {name}");
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
                }
                _ => {}
            }
        }
        Ok(query)
    }
}

/// The log of a container's latest run, or of the one before. Names of the API server hold no slash and no underscore.
fn find(state: &Path, name: &Name, previous: bool) -> Option<PathBuf> {
    let prefix = format!("{}_{}_", name.namespace, name.pod);
    let pods = std::fs::read_dir(state.join("logs")).ok()?.flatten();
    let ours = pods.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    // A Pod of a StatefulSet has had predecessors of the same name.
    let latest = ours.max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok())?;
    let directory = latest.path().join(&name.container);
    let runs = std::fs::read_dir(&directory).ok()?.flatten();
    let run: i32 = runs.filter_map(|entry| entry.path().file_stem()?.to_str()?.parse().ok()).max()?;
    let log = directory.join(format!("{}.log", run - i32::from(previous)));
    log.exists().then_some(log)
}

/// The bytes of a log; if it is followed, those to come too, as long as somebody writes it.
fn read(log: PathBuf, query: Query, written: impl Fn() -> bool) -> impl Stream<Item = Bytes> {
    let begin = match query.tail {
        Some(lines) => std::fs::read(&log).map_or(0, |all| tail(&all, lines)) as u64,
        None => 0,
    };
    let end = begin.saturating_add(query.limit);
    futures::stream::unfold((log, begin, written), move |(log, at, written)| async move {
        loop {
            // Looked at first: what is written before the end is still read.
            let over = at >= end || !query.follow || !written();
            let mut chunk = Vec::new();
            let mut file = tokio::fs::File::open(&log).await.ok()?;
            file.seek(std::io::SeekFrom::Start(at)).await.ok()?;
            let length = file.take(CHUNK.min(end - at)).read_to_end(&mut chunk).await.ok()?;
            if length > 0 {
                return Some((Bytes::from(chunk), (log, at + length as u64, written)));
            }
            if over {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}

/// Where the last lines of a text begin.
fn tail(text: &[u8], lines: usize) -> usize {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    match lines {
        0 => text.len(),
        lines => ends.take(lines).nth(lines - 1).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_with_and_without_a_final_newline() {
        let cases: [(&str, usize, &str); 7] = [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\n", 1, "a\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n", 1, "\n"),
        ];
        for (text, lines, expected) in cases {
            assert_eq!(&text[tail(text.as_bytes(), lines)..], expected, "{text:?} {lines}");
        }
    }

    #[test]
    fn a_query_says_which_part_of_which_run() {
        let query = Query::parse("follow=true&tailLines=5&timestamps=false&limitBytes=9").unwrap();
        assert_eq!(query, Query { follow: true, previous: false, tail: Some(5), limit: 9 });
        assert!(Query::parse("previous=true").unwrap().previous);
        for refused in ["timestamps=true", "sinceSeconds=5", "tailLines=-1", "follow=maybe"] {
            let name = refused.split('=').next().unwrap();
            assert!(Query::parse(refused).unwrap_err().text.contains(name), "{refused}");
        }
    }

    #[tokio::test]
    async fn the_latest_run_is_read_and_the_one_before_on_request() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("logs/shop_web_u1/main");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("9.log"), "nine\n").unwrap();
        std::fs::write(directory.join("10.log"), "ten\neleven\n").unwrap();
        let name =
            |container: &str| Name { namespace: "shop".into(), pod: "web".into(), container: container.to_owned() };
        let text = async |query| {
            let query = Query::parse(query).unwrap();
            let log = find(state.path(), &name("main"), query.previous).unwrap();
            let chunks: Vec<Bytes> = read(log, query, || false).collect().await;
            String::from_utf8(chunks.concat()).unwrap()
        };
        assert_eq!(text("").await, "ten\neleven\n");
        assert_eq!(text("follow=true").await, "ten\neleven\n", "nobody writes it any more");
        assert_eq!(text("tailLines=1").await, "eleven\n");
        assert_eq!(text("tailLines=1&limitBytes=2").await, "el");
        assert_eq!(text("previous=true").await, "nine\n");
        assert_eq!(find(state.path(), &name("other"), false), None);
    }
}
