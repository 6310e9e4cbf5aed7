//! A steady load, and what became of each request.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};

use crate::client::Client;

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Requests that share a connection, before it is replaced: both kept-alive and new connections are part of the load.
const PER_CONNECTION: usize = 25;

/// One request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When its answer was complete, or failed.
    pub at: Instant,
    /// The Pod that answered; else what went wrong.
    pub result: Result<String, String>,
}

/// Requests at a steady rate, until dropped.
#[derive(Debug)]
pub struct Load {
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Receiver<usize>,
    tasks: Vec<JoinHandle<()>>,
}

// === impl Load ===

impl Load {
    /// Sends `rate` requests a second in all, evenly to each of the addresses, each by a client of its own. Every other
    /// connection is kept for one request only.
    pub fn start(rate: u32, host: &str, clients: &[(IpAddr, SocketAddr)]) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (counter, count) = watch::channel(0);
        let period = Duration::from_secs(1) * clients.len() as u32 / rate;
        let tasks = clients.iter().map(|&(from, to)| {
            let (seen, counter, host) = (seen.clone(), counter.clone(), host.to_owned());
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut connection = None;
                for turn in 0usize.. {
                    ticks.tick().await;
                    let lasts = (turn / PER_CONNECTION).is_multiple_of(2) && turn % PER_CONNECTION != 0;
                    if !lasts {
                        connection = None;
                    }
                    let result = ask(&mut connection, from, to, &host).await;
                    if result.is_err() {
                        connection = None;
                    }
                    let mut seen = lock(&seen);
                    seen.push(Seen { at: Instant::now(), result });
                    counter.send_replace(seen.len());
                }
            })
        });
        Self { tasks: tasks.collect(), seen, count }
    }

    /// Waits until something can be found among the requests so far, and gives that.
    ///
    /// # Panics
    /// When it is not found in time.
    pub async fn until<T>(&mut self, what: &str, find: impl Fn(&[Seen]) -> Option<T>) -> T {
        let search = async {
            loop {
                let found = find(&lock(&self.seen));
                if let Some(found) = found {
                    return found;
                }
                self.count.changed().await.expect("the load goes on");
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("waited in vain until {what}; failures: {:#?}", self.failures()))
    }

    /// When a Pod answered first after `since`.
    pub async fn first_answer(&mut self, pod: &str, since: Instant) -> Instant {
        let by_pod = |seen: &Seen| seen.at > since && seen.result.as_deref() == Ok(pod);
        self.until(&format!("{pod} answers"), |all| all.iter().find(|seen| by_pod(seen)).map(|seen| seen.at)).await
    }

    /// When a Pod answered last, known by the `quiet` requests since then that others answered; `since` if it did not
    /// answer later than that.
    pub async fn last_answer(&mut self, pod: &str, since: Instant, quiet: usize) -> Instant {
        let find = |all: &[Seen]| {
            let after: Vec<&Seen> = all.iter().filter(|seen| seen.at > since).collect();
            let last = after.iter().rposition(|seen| seen.result.as_deref() == Ok(pod));
            let others = after.len() - last.map_or(0, |at| at + 1);
            (others >= quiet).then(|| last.map_or(since, |at| after[at].at))
        };
        self.until(&format!("{pod} no longer answers"), find).await
    }

    /// Waits for this many more requests.
    pub async fn more(&mut self, requests: usize) {
        let target = lock(&self.seen).len() + requests;
        self.until("the load goes on", |all| (all.len() >= target).then_some(())).await;
    }

    /// What went wrong so far, with the number of requests before it.
    pub fn failures(&self) -> Vec<(usize, String)> {
        let seen = lock(&self.seen);
        let failed = seen.iter().enumerate().filter_map(|(at, seen)| Some((at, seen.result.as_ref().err()?.clone())));
        failed.collect()
    }

    /// How many requests there were so far.
    pub fn requests(&self) -> usize {
        lock(&self.seen).len()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn ask(connection: &mut Option<Client>, from: IpAddr, to: SocketAddr, host: &str) -> Result<String, String> {
    let client = match connection {
        Some(client) => client,
        None => {
            connection.insert(Client::connect(from, to).await.map_err(|error| format!("connect to {to}: {error}"))?)
        }
    };
    let answer = client.get(host, "/").await.map_err(|error| format!("GET at {to}: {error}"))?;
    match answer.status.as_u16() {
        200 => Ok(answer.field("pod")),
        status => Err(format!("{to}: {status} {:?} {:?}", answer.header("proxy-status"), answer.body)),
    }
}

/// A task that panicked leaves what it pushed before, which is whole.
fn lock(seen: &Mutex<Vec<Seen>>) -> MutexGuard<'_, Vec<Seen>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
