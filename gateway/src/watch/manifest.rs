//! A directory of manifests as a source: watched, forgiving, and completed as a cluster would.
//!
//! The file system only says that something may have changed. Every look at the directory compares what is there with
//! what was, so missed or doubled notifications, editors that write in three steps, and volumes that swap a link all end
//! in the same state.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _, event::AccessKind};
use tokio::sync::mpsc;

pub mod files;
pub mod parse;

use files::Files;

use super::{
    Batch, Error, Reports,
    object::{Event, Kind, Object, ObjectKey},
};
use crate::emulate::{Held, Rules, emulate};

/// Quiet after a notification before the directory is looked at: editors and copies write in steps.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never becomes quiet is looked at after this long nevertheless.
const MAX_WAIT: Duration = Duration::from_millis(300);
/// How often the directory is looked at without a notification, for file systems that send none.
const RESCAN: Duration = Duration::from_secs(2);

/// What to read, and what a cluster would give to it.
#[derive(Clone, Debug)]
pub struct Source {
    /// The directory.
    pub directory: PathBuf,
    /// What there is to give away.
    pub rules: Rules,
}

/// What was seen so far, and what was said about it.
struct State {
    files: Files,
    rules: Rules,
    held: Held,
    /// `None` before the first look.
    sent: Option<BTreeMap<ObjectKey, Object>>,
    reports: Arc<Reports>,
}

impl Source {
    /// Stands for the directory, wherever it is looked at from.
    pub fn cluster_uid(&self) -> String {
        let canonical = self.directory.canonicalize().unwrap_or_else(|_| self.directory.clone());
        format!("manifests-{}", &blake3::hash(canonical.as_os_str().as_encoded_bytes()).to_hex()[..16])
    }

    /// Sends the content of the directory, and then every change of it, until nobody listens any more.
    ///
    /// # Errors
    /// [`Error::Directory`] if it cannot be read at the start. Later it may vanish and come back.
    pub async fn run(self, batches: mpsc::Sender<Batch>) -> Result<(), Error> {
        let failed = |source| Error::Directory { directory: self.directory.clone(), source };
        drop(tokio::fs::read_dir(&self.directory).await.map_err(failed)?);
        let (notices, mut noticed) = mpsc::channel(1);
        let mut watcher = watch(&self.directory, notices.clone());
        let mut state = State::new(self.directory.clone(), self.rules);
        loop {
            let began = Instant::now();
            let looked = tokio::task::spawn_blocking(move || {
                let batch = state.look();
                (state, batch)
            });
            let batch = match looked.await {
                Ok((back, batch)) => {
                    state = back;
                    batch
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            if let Some(batch) = batch
                && batches.send(batch).await.is_err()
            {
                return Ok(());
            }
            // A large directory is not looked at all the time.
            let rescan = RESCAN.max(began.elapsed() * 20);
            tokio::select! {
                Some(()) = noticed.recv() => quiet(&mut noticed).await,
                () = tokio::time::sleep(rescan) => {
                    // The watch of a directory that was replaced is dead, and nothing says so.
                    if watcher.as_ref().is_none_or(|(_, inode)| inode_of(&self.directory) != *inode) {
                        watcher = watch(&self.directory, notices.clone());
                    }
                }
                () = batches.closed() => return Ok(()),
            }
        }
    }
}

/// Waits until no notification has come for a while.
async fn quiet(noticed: &mut mpsc::Receiver<()>) {
    let until = tokio::time::Instant::now() + MAX_WAIT;
    loop {
        let silence = tokio::time::sleep(QUIET);
        tokio::select! {
            Some(()) = noticed.recv() => {}
            () = silence => return,
            () = tokio::time::sleep_until(until) => return,
        }
    }
}

/// Asks for notifications. Without them, which is logged, the regular looks still find every change.
fn watch(directory: &std::path::Path, notices: mpsc::Sender<()>) -> Option<(RecommendedWatcher, Option<u64>)> {
    let notice = move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        let change = event.map_or(true, |event| match event.kind {
            notify::EventKind::Access(AccessKind::Close(mode)) => mode == notify::event::AccessMode::Write,
            notify::EventKind::Access(_) => false,
            _ => true,
        });
        if change {
            // A full channel says the same already.
            let _ = notices.try_send(());
        }
    };
    let inode = inode_of(directory);
    let watcher = notify::recommended_watcher(notice).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some((watcher, inode)),
        Err(error) => {
            tracing::debug!(directory = %directory.display(), %error, "no notifications; looking regularly");
            None
        }
    }
}

fn inode_of(directory: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(directory).ok().map(|metadata| metadata.ino())
}

// === impl State ===

impl State {
    fn new(directory: PathBuf, rules: Rules) -> Self {
        Self { files: Files::new(directory), rules, held: Held::default(), sent: None, reports: Arc::default() }
    }

    /// One look at the directory: what changed since the last one, if anything.
    fn look(&mut self) -> Option<Batch> {
        if !self.files.scan(Timestamp::now()) && self.sent.is_some() {
            return None;
        }
        let merged = self.files.merge();
        let emulated = emulate(&self.rules, &merged.objects, &mut self.held);
        let mut objects = emulated.problems;
        for (key, problems) in merged.duplicates {
            objects.entry(key).or_default().extend(problems);
        }
        let events = match self.sent.take() {
            None => resets(&emulated.objects),
            Some(before) => difference(&before, &emulated.objects),
        };
        self.sent = Some(emulated.objects);
        let reports = Arc::new(Reports { source: merged.broken, objects, others: merged.others, ..Reports::default() });
        let told_anew = reports != self.reports;
        self.reports = reports.clone();
        (told_anew || !events.is_empty()).then_some(Batch { events, reports: Some(reports) })
    }
}

fn resets(objects: &BTreeMap<ObjectKey, Object>) -> Vec<Event> {
    let of = |kind: Kind| objects.values().filter(|object| object.kind() == kind).cloned().collect();
    Kind::ALL.into_iter().map(|kind| Event::Reset(kind, of(kind))).collect()
}

fn difference(before: &BTreeMap<ObjectKey, Object>, after: &BTreeMap<ObjectKey, Object>) -> Vec<Event> {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).cloned().map(Event::Delete);
    let changed = after.iter().filter(|(key, object)| before.get(*key).is_none_or(|before| !before.is_same(object)));
    gone.chain(changed.map(|(_, object)| Event::Apply(object.clone()))).collect()
}
