//! Pages over one frozen board (AIP-158). The board of a list that has further pages is kept for as long as somebody is
//! likely to ask for them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Status;

use super::{query::Query, token::Token};
use crate::health::board::Board;

/// Items on a page when the request does not say.
const SIZE: usize = 500;

/// Items on a page at most.
const MAX_SIZE: usize = 1_000;

/// How long the next page may take to be asked for.
const KEPT: Duration = Duration::from_secs(300);

/// Boards that are kept; they share most of what is on them.
const MAX_KEPT: usize = 64;

/// Boards whose pages are being read.
#[derive(Debug, Default)]
pub struct Pages {
    kept: Mutex<VecDeque<(Instant, Arc<Board>)>>,
}

/// What a list asks for beside its selection.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Items wanted; 0 leaves it to us.
    pub size: i32,
    /// Where the page before ended; empty for the first.
    pub token: &'a str,
    /// Etag of what is held already; empty for nothing.
    pub if_changed_from: &'a str,
}

/// One page.
#[derive(Debug)]
pub struct Page<T> {
    /// The board it was read off.
    pub board: Arc<Board>,
    /// Its items.
    pub items: Vec<T>,
    /// Token of the next page; empty on the last.
    pub next: String,
    /// What is held already is what there is; the page is empty.
    pub unchanged: bool,
}

// === impl Pages ===

impl Pages {
    /// One page of `query`. `newest` is asked for when a list begins.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a negative size, and for a token that is not of this list. `ABORTED` if the list took too
    /// long, or went on at another replica: it has to begin anew.
    pub fn page<Q: Query>(
        &self,
        query: &Q,
        request: Request<'_>,
        newest: impl FnOnce() -> Result<Arc<Board>, Status>,
        replica_id: &str,
    ) -> Result<Page<Q::Item>, Status> {
        let size = match usize::try_from(request.size) {
            Ok(0) => SIZE,
            Ok(size) => size.min(MAX_SIZE),
            Err(_) => return Err(Status::invalid_argument("page_size: is negative; give 0 or more")),
        };
        let (board, after) = match request.token {
            "" => (newest()?, None),
            token => {
                let (board, after) = self.resume::<Q>(query, token, replica_id)?;
                (board, Some(after))
            }
        };
        if after.is_none() && !request.if_changed_from.is_empty() && request.if_changed_from == Q::etag(&board) {
            return Ok(Page { board, items: Vec::new(), next: String::new(), unchanged: true });
        }
        let is_told = |key: &Q::Key| after.as_ref().is_some_and(|after| key <= after);
        let keys = query.all(&board).map(|(key, _)| key).skip_while(|key| is_told(key));
        // One more than fits says whether there is a next page.
        let mut found: Vec<(&Q::Key, Q::Item)> =
            keys.filter_map(|key| Some((key, query.item(&board, key)?))).take(size + 1).collect();
        let is_last = found.len() <= size;
        found.truncate(size);
        let next = match found.last() {
            Some((key, _)) if !is_last => Token {
                replica_id: replica_id.to_owned(),
                revision: board.revision,
                query: query.hash(),
                etag: String::new(),
                after: Q::name(key),
            }
            .encode(),
            _ => String::new(),
        };
        let items = found.into_iter().map(|(_, item)| item).collect();
        if !next.is_empty() {
            self.keep(&board);
        }
        Ok(Page { board, items, next, unchanged: false })
    }

    fn resume<Q: Query>(&self, query: &Q, token: &str, replica_id: &str) -> Result<(Arc<Board>, Q::Key), Status> {
        let wrong = || Status::invalid_argument("page_token: give the next_page_token of the page before");
        let token = Token::decode(token).ok_or_else(wrong)?;
        let after = Q::key(&token.after).ok_or_else(wrong)?;
        if token.query != query.hash() {
            return Err(Status::invalid_argument("page_token: belongs to a list with another selector or view"));
        }
        let over = || Status::aborted("page_token: the list is over; begin anew");
        if token.replica_id != replica_id {
            return Err(over());
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(at, _)| at.elapsed() < KEPT);
        let board = kept.iter().find(|(_, board)| board.revision == token.revision).map(|(_, board)| board.clone());
        Ok((board.ok_or_else(over)?, after))
    }

    fn keep(&self, board: &Arc<Board>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(at, other)| at.elapsed() < KEPT && other.revision != board.revision);
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back((Instant::now(), board.clone()));
    }
}
