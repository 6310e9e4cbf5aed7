//! The other end of a stream: who it is, for which node it may speak, and until when.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Extensions;
use tokio::{sync::watch, time::Instant};
use tonic::Status;

use super::{
    refusal::{Reason, Refusal, Refusals},
    roster::{Known, PodRef},
};

/// A stream ends between these times before its token does: late enough for the kubelet to have renewed the file, which it
/// does after four fifths of a token's life, and spread, because the tokens of a cluster are often of one age.
const EARLY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(300));

/// Who opened a stream.
#[derive(Clone, Debug)]
pub struct Peer {
    agent: Option<Arc<Agent>>,
    from: Arc<str>,
    refusals: Arc<Refusals>,
}

/// An agent whose credential was checked.
#[derive(Debug)]
pub struct Agent {
    node: Arc<str>,
    pod: Option<PodRef>,
    ends: Instant,
    known: watch::Receiver<Known>,
}

/// How long a stream may go on.
#[derive(Debug)]
pub struct Lease {
    agent: Option<Arc<Agent>>,
    known: Option<watch::Receiver<Known>>,
    /// Whether the Pod and the Node were seen. What was not is late, not gone: watches are behind the API server.
    seen: (bool, bool),
}

/// Why a stream has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The token expires soon; the agent has another one.
    Expiring,
    /// The Pod that the token is bound to is gone.
    PodGone,
    /// The Node is gone.
    NodeGone,
}

// === impl Peer ===

impl Peer {
    /// Anyone, from the address `from`.
    pub fn anyone(from: &str, refusals: Arc<Refusals>) -> Self {
        Self { agent: None, from: from.into(), refusals }
    }

    /// This agent, from the address `from`.
    pub fn agent(agent: Agent, from: &str, refusals: Arc<Refusals>) -> Self {
        Self { agent: Some(Arc::new(agent)), from: from.into(), refusals }
    }

    /// The peer that the gate has put into a request.
    ///
    /// # Errors
    /// `INTERNAL` if the request did not pass the gate: nobody is let in by forgetting to ask.
    pub fn of(extensions: &Extensions) -> Result<Self, Status> {
        extensions.get::<Self>().cloned().ok_or_else(|| Status::internal("the request was not authenticated"))
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.from
    }

    /// The Pod that its token is bound to.
    pub fn pod(&self) -> Option<&PodRef> {
        self.agent.as_ref()?.pod.as_ref()
    }

    /// Checks that it may speak for `node`. A refusal is counted and logged.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if its credential is bound to another node.
    pub fn admit(&self, node: &str) -> Result<(), Status> {
        match &self.agent {
            Some(agent) if *agent.node != *node => {
                let message = format!("the token is bound to node {:?}, and cannot speak for {node:?}", agent.node);
                let refusal = Refusal::new(Reason::OtherNode, message);
                self.refusals.note(&self.from, Some(node), &refusal);
                Err(refusal.into())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it may take the place of an agent in the Pod `old`.
    pub fn outranks(&self, old: Option<&PodRef>) -> bool {
        match (&self.agent, self.pod(), old) {
            (Some(agent), Some(new), Some(old)) => agent.known.borrow().outranks(new, old),
            _ => true,
        }
    }

    /// How long a stream of it may go on.
    pub fn lease(&self) -> Lease {
        let known = self.agent.as_ref().map(|agent| agent.known.clone());
        Lease { agent: self.agent.clone(), known, seen: (false, false) }
    }
}

// === impl Agent ===

impl Agent {
    /// The agent on `node`, in `pod`, with a token that expires at `expires`.
    pub fn new(node: Arc<str>, pod: Option<PodRef>, expires: SystemTime, known: watch::Receiver<Known>) -> Self {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        Self { node, pod, ends: Instant::now() + stay(left, fraction()), known }
    }
}

/// How long a stream stays whose token is valid for `left`. `spread`, from 0 to 1, says where in [`EARLY`] it ends.
fn stay(left: Duration, spread: f64) -> Duration {
    let early = EARLY.0 + (EARLY.1 - EARLY.0).mul_f64(spread);
    // A token that is nearly over still opens a stream, for most of the time it has.
    left - early.min(left / 5)
}

/// A number from 0 to 1 that differs from stream to stream.
fn fraction() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

// === impl Lease ===

impl Lease {
    /// Completes when the stream has to end. Cancel safe.
    pub async fn ended(&mut self) -> Ending {
        let (Some(agent), Some(known)) = (&self.agent, &mut self.known) else { return std::future::pending().await };
        loop {
            if let Some(ending) = agent.is_gone(&known.borrow_and_update(), &mut self.seen) {
                return ending;
            }
            tokio::select! {
                () = tokio::time::sleep_until(agent.ends) => return Ending::Expiring,
                changed = known.changed() => if changed.is_err() {
                    // Nobody watches any more, so the process ends; the stream does so by itself.
                    tokio::time::sleep_until(agent.ends).await;
                    return Ending::Expiring;
                },
            }
        }
    }
}

impl Agent {
    fn is_gone(&self, known: &Known, seen: &mut (bool, bool)) -> Option<Ending> {
        let pod = self.pod.as_ref().is_some_and(|pod| known.has_pod(pod));
        let node = known.has_node(&self.node);
        let ending = match (pod, node) {
            (false, _) if seen.0 => Some(Ending::PodGone),
            (_, false) if seen.1 => Some(Ending::NodeGone),
            _ => None,
        };
        *seen = (seen.0 || pod, seen.1 || node);
        ending
    }
}

// === impl Ending ===

impl Ending {
    /// What to tell the agent where there is no message for it.
    pub fn status(self) -> Status {
        match self {
            Ending::Expiring => Status::unavailable("the token expires soon; connect again with the renewed one"),
            Ending::PodGone => Status::permission_denied("the Pod of the token is gone"),
            Ending::NodeGone => Status::permission_denied("the Node of the token is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use super::*;
    use crate::{
        identity::roster::{
            Roster,
            tests::{account, node, pod, reference},
        },
        watch::object::{Event, Kind, ObjectKey},
    };

    #[test]
    fn a_stream_ends_well_before_its_token() {
        let seconds = Duration::from_secs;
        let cases = [(3600, 0.0, 3540), (3600, 1.0, 3300), (600, 1.0, 480), (100, 0.0, 80), (0, 0.5, 0)];
        for (left, spread, expected) in cases {
            assert_eq!(stay(seconds(left), spread), seconds(expected), "{left} {spread}");
        }
        assert!((0..1000).all(|_| (0.0..1.0).contains(&fraction())));
    }

    fn peer(roster: &Roster, left: Duration) -> Peer {
        let agent = Agent::new("n1".into(), Some(reference("a", "u1")), SystemTime::now() + left, roster.watch());
        Peer::agent(agent, "192.0.2.1:1", Arc::default())
    }

    #[test]
    fn a_peer_speaks_for_the_node_of_its_credential_only() {
        let roster = Roster::new(account());
        let peer = peer(&roster, Duration::from_secs(3600));
        assert!(peer.admit("n1").is_ok());
        assert_eq!(peer.admit("n2").map_err(|status| status.code()), Err(tonic::Code::PermissionDenied));
        assert_eq!(peer.refusals.count(Reason::OtherNode), 1);
        assert!(Peer::anyone("192.0.2.1:1", Arc::default()).admit("n2").is_ok());
        assert!(Peer::of(&Extensions::new()).is_err(), "nobody comes in beside the gate");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_before_the_token_and_anyones_does_not() {
        let roster = Roster::new(account());
        let began = Instant::now();
        let mut lease = peer(&roster, Duration::from_secs(600)).lease();
        assert_eq!(lease.ended().await, Ending::Expiring);
        let lasted = began.elapsed();
        assert!((Duration::from_secs(479)..Duration::from_secs(541)).contains(&lasted), "{lasted:?}");
        let mut lease = Peer::anyone("192.0.2.1:1", Arc::default()).lease();
        let mut ended = pin!(lease.ended());
        assert!(futures::poll!(&mut ended).is_pending());
    }

    #[tokio::test]
    async fn a_lease_ends_with_what_was_there_and_is_gone() {
        for (gone, expected) in [(Kind::Pod, Ending::PodGone), (Kind::Node, Ending::NodeGone)] {
            let roster = Roster::new(account());
            let mut lease = peer(&roster, Duration::from_secs(3600)).lease();
            let mut ended = pin!(lease.ended());
            assert!(futures::poll!(&mut ended).is_pending(), "what was not seen is late");
            roster.note(&Event::Reset(Kind::Node, vec![node("n1")]));
            roster.note(&Event::Apply(pod("a", "u1", "n1", "portico-agent", "2026-01-01T00:00:00Z")));
            assert!(futures::poll!(&mut ended).is_pending());
            roster.note(&Event::Delete(match gone {
                Kind::Pod => ObjectKey::new(Kind::Pod, "portico-system", "a"),
                kind => ObjectKey::new(kind, "", "n1"),
            }));
            assert_eq!(futures::poll!(&mut ended), Poll::Ready(expected));
        }
    }
}
