//! The task behind a watch: it asks the cursor what is due, and tells it as fast as the reader reads.

use std::{sync::Arc, time::Duration};

use api::proto::health::{Bookmark, Reset};
use runtime::drain;
use tokio::{
    sync::mpsc::{self, error::SendError},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    cursor::{Cursor, Resumed},
    freshness,
    query::Query,
};
use crate::health::{board::Board, judge::Boards};

/// A bookmark comes at least this often, so that what was told before can go on being trusted.
const MAX_QUIET: Duration = Duration::from_secs(10);

/// No reader may ask to be told less often than this: it would take the news of an hour ago for those of now.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// Events that wait for the connection. Few, because what waits is not the latest any more.
const OUTBOX: usize = 4;

/// What a watch asks for beside its selection.
#[derive(Clone, Debug)]
pub struct Request {
    resume_token: String,
    min_interval: Duration,
}

/// What every watch of a replica is driven by.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Boards as they come.
    pub boards: Boards,
    /// When this replica begins to end.
    pub drain: drain::Watch,
}

/// One watch.
struct Watch<Q: Query> {
    cursor: Cursor<Q>,
    resume_token: String,
    replica_id: Arc<str>,
    feed: Feed,
    outbox: mpsc::Sender<Result<Q::Event, Status>>,
    /// When the next bookmark is due, and what the last one said of the replica.
    bookmark_due: Instant,
    degraded: bool,
}

/// Nobody listens any more, or this replica ends.
struct Over;

/// Starts a watch. It ends when its stream is dropped.
pub fn start<Q: Query>(
    query: Q,
    request: Request,
    replica_id: Arc<str>,
    feed: Feed,
) -> ReceiverStream<Result<Q::Event, Status>> {
    let (outbox, events) = mpsc::channel(OUTBOX);
    let watch = Watch {
        cursor: Cursor::new(query, request.min_interval),
        resume_token: request.resume_token,
        replica_id,
        feed,
        outbox,
        bookmark_due: Instant::now(),
        degraded: false,
    };
    tokio::spawn(watch.run());
    ReceiverStream::new(events)
}

// === impl Request ===

impl Request {
    /// What a request asks for.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an interval that is negative or no duration.
    pub fn new(resume_token: String, min_interval: Option<prost_types::Duration>) -> Result<Self, Status> {
        let min_interval = Duration::try_from(min_interval.unwrap_or_default());
        let min_interval =
            min_interval.map_err(|_| Status::invalid_argument("min_interval: is negative; give 0s or more"))?;
        Ok(Self { resume_token, min_interval: min_interval.min(MAX_INTERVAL) })
    }
}

// === impl Watch ===

impl<Q: Query> Watch<Q> {
    async fn run(mut self) {
        let mut drain = self.feed.drain.clone();
        let outbox = self.outbox.clone();
        tokio::select! {
            _ = self.serve() => {}
            () = drain.started() => {
                let status = Status::unavailable("this replica is shutting down; resume with the last token at another");
                // A reader that is gone need not be told.
                let _ = outbox.send(Err(status)).await;
            }
        }
    }

    async fn serve(&mut self) -> Result<(), Over> {
        self.begin().await?;
        loop {
            let next = self.catch_up().await?;
            let board = self.newest()?;
            if self.bookmark_due <= Instant::now() || board.degraded != self.degraded {
                self.bookmark(&board).await?;
            }
            let wake = next.map_or(self.bookmark_due, |next| next.min(self.bookmark_due));
            tokio::select! {
                changed = self.feed.boards.changed() => changed.map_err(|_| Over)?,
                () = tokio::time::sleep_until(wake) => {}
                () = self.outbox.closed() => return Err(Over),
            }
        }
    }

    /// Waits for the first board, and takes up where the token was given.
    async fn begin(&mut self) -> Result<(), Over> {
        let boards = &mut self.feed.boards;
        let board = tokio::select! {
            board = boards.wait_for(Option::is_some) => board.map_err(|_| Over)?.clone().ok_or(Over)?,
            () = self.outbox.closed() => return Err(Over),
        };
        if self.resume_token.is_empty() {
            return Ok(());
        }
        match self.cursor.resume(&self.resume_token, &board, &self.replica_id) {
            Resumed::Gone(keys) => {
                for key in keys {
                    self.send(Q::removal(&key)).await?;
                }
                Ok(())
            }
            Resumed::Anew(reason) => self.send(Q::reset(Reset { reason: reason.to_owned() })).await,
        }
    }

    /// Tells everything that is due. Returns when something that is held back will be.
    async fn catch_up(&mut self) -> Result<Option<Instant>, Over> {
        self.feed.boards.mark_unchanged();
        let due = self.cursor.due(&*self.newest()?, Instant::now());
        for key in due.keys {
            // The place is taken first: what is told is the latest when it can be told.
            let outbox = self.outbox.clone();
            let place = outbox.reserve().await.map_err(|SendError(())| Over)?;
            let board = self.newest()?;
            if let Some(event) = self.cursor.tell(&board, &key, Instant::now()) {
                place.send(Ok(event));
            }
        }
        Ok(due.next)
    }

    async fn bookmark(&mut self, board: &Board) -> Result<(), Over> {
        self.degraded = board.degraded;
        // Twice within the time for which a verdict may be trusted.
        self.bookmark_due = Instant::now() + MAX_QUIET.min(board.term / 3);
        let bookmark = Bookmark {
            resume_token: self.cursor.token(&self.replica_id),
            initial_state_complete: true,
            freshness: Some(freshness::<Q>(board, &self.replica_id)),
        };
        self.send(Q::bookmark(bookmark)).await
    }

    async fn send(&self, event: Q::Event) -> Result<(), Over> {
        self.outbox.send(Ok(event)).await.map_err(|_| Over)
    }

    fn newest(&self) -> Result<Arc<Board>, Over> {
        self.feed.boards.borrow().clone().ok_or(Over)
    }
}
