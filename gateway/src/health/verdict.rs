//! What is to be said of a node, and of a node as a target for one Service. Pure: the caller brings facts and the time,
//! and the first rule that matches decides.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use api::proto::{health as wire, node::NodeServingState};
use tokio::time::Instant;

/// A verdict in a word. The order is from good to bad, and the worse of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Takes connections.
    Healthy,
    /// Nobody knows: whoever asks keeps the last decision.
    Unknown,
    /// Finishes what it has; no new connections.
    Draining,
    /// No connections.
    Unhealthy,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What vouches for the agent's last word.
    pub lease: Lease,
    /// The agent's last word; unspecified if there is none.
    pub state: NodeServingState,
    /// The Node is being deleted, or tainted for it by the cluster autoscaler (KEP-3836).
    pub leaving: bool,
}

/// What vouches for the agent's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How it began.
    pub origin: Origin,
    /// When it is over, unless it is renewed.
    pub end: Instant,
    /// How long it lasts, and how long after its end a node is unknown before it counts as failed.
    pub term: Duration,
    /// Too many leases ended at once: the fault is ours, so the last word stands.
    pub held: bool,
}

/// How a lease began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The agent reported.
    Reported,
    /// This replica has just started, and agents may not have found it yet.
    Warmup,
    /// The Node is new, and its agent has yet to start.
    NewNode,
}

/// What is to be said of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In a word.
    pub state: State,
    /// UPPER_SNAKE_CASE. Reasons of faults are chosen by agents, the others are listed in [`node`] and [`backend`].
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: Cow<'static, str>,
    /// When time alone changes it.
    pub until: Option<Instant>,
}

/// What is known of a node as a target for one Service.
#[derive(Clone, Copy, Debug)]
pub struct BackendFacts<'a> {
    /// The verdict on the node.
    pub node: &'a Verdict,
    /// Weight of the node: 0 or 1.
    pub node_weight: u32,
    /// What the agent cannot serve of the Service.
    pub fault: Option<&'a Fault>,
    /// `externalTrafficPolicy: Local`, with the endpoints on the node.
    pub local: Option<Local>,
}

/// A Service port that a node cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// UPPER_SNAKE_CASE.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Since when.
    pub since: Option<SystemTime>,
}

/// Endpoints of one Service on one node, counted by distinct address (S12.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Local {
    /// Those that take new connections.
    pub ready: u32,
    /// Those that still answer; the ready ones are among them.
    pub serving: u32,
}

/// A verdict on a backend, with its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendVerdict {
    /// In a word.
    pub state: State,
    /// UPPER_SNAKE_CASE.
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: Cow<'static, str>,
    /// Share of connections; 0 means no new ones.
    pub weight: u32,
    /// Whether the node, and not what it has of the Service, decided.
    pub by_node: bool,
}

/// Judges a node. That Nodes are `NotReady` or cordoned changes nothing: those have other causes (KEP-3458).
pub fn node(facts: &Facts, now: Instant) -> Verdict {
    let Facts { lease, state, leaving } = facts;
    let say = |state, reason: &'static str, message: &'static str, until| Verdict {
        state,
        reason: reason.into(),
        message: message.into(),
        until,
    };
    if now < lease.end {
        let until = Some(lease.end);
        match lease.origin {
            Origin::Warmup => {
                let message = "this replica has just started and has not heard the agent yet";
                return say(State::Unknown, "CONTROL_PLANE_WARMUP", message, until);
            }
            Origin::NewNode => {
                return say(State::Unknown, "AGENT_NOT_SEEN", "the node is new and its agent has not reported", until);
            }
            Origin::Reported => {}
        }
    } else if !lease.held {
        let message = match lease.origin {
            Origin::Reported => "the agent has stopped reporting",
            Origin::Warmup | Origin::NewNode => "no agent has ever reported from this node",
        };
        let failed = lease.end + lease.term;
        return match now < failed {
            true => say(State::Unknown, "LEASE_EXPIRED", message, Some(failed)),
            false => say(State::Unhealthy, "LEASE_EXPIRED", message, None),
        };
    }
    let until = (now < lease.end).then_some(lease.end);
    match state {
        NodeServingState::Failed => say(State::Unhealthy, "AGENT_FAILED", "the agent cannot serve", until),
        NodeServingState::Starting | NodeServingState::Unspecified => {
            say(State::Unhealthy, "NOT_SYNCED", "the agent has not applied the state of the cluster yet", until)
        }
        NodeServingState::Draining => say(State::Draining, "AGENT_DRAINING", "the agent is shutting down", until),
        NodeServingState::Serving if *leaving => {
            say(State::Draining, "NODE_LEAVING", "the node is about to be removed from the cluster", until)
        }
        NodeServingState::Serving => say(State::Healthy, "SERVING", "", until),
    }
}

/// The weight of a node: 1 if it takes new connections. An unknown node keeps the weight it had `before`. One that was
/// never known counts in while this replica starts, so that no pool runs empty because of us, and otherwise out.
pub fn node_weight(verdict: &Verdict, before: Option<u32>, origin: Origin) -> u32 {
    match verdict.state {
        State::Healthy => 1,
        State::Draining | State::Unhealthy => 0,
        State::Unknown => before.unwrap_or(u32::from(origin == Origin::Warmup)),
    }
}

/// Judges a node as a target for one Service: the worse of the node and of what it has of the Service. Without local
/// ready endpoints the node still serves what reaches it, but load balancers are to leave it (KEP-1669).
pub fn backend(facts: &BackendFacts<'_>) -> BackendVerdict {
    let own = own(facts);
    let count = facts.local.map_or(1, |local| local.ready);
    let (state, reason, message, by_node) = match own {
        Some((state, reason, message)) if state > facts.node.state => (state, reason, message, false),
        _ => (facts.node.state, facts.node.reason.clone(), facts.node.message.clone(), true),
    };
    let weight = match state {
        State::Healthy | State::Unknown => facts.node_weight * count,
        State::Draining | State::Unhealthy => 0,
    };
    BackendVerdict { state, reason, message, weight, by_node }
}

/// What speaks against a backend whatever its node is like.
fn own(facts: &BackendFacts<'_>) -> Option<(State, Cow<'static, str>, Cow<'static, str>)> {
    if let Some(fault) = facts.fault {
        return Some((State::Unhealthy, fault.reason.clone().into(), fault.message.clone().into()));
    }
    match facts.local? {
        Local { ready: 1.., .. } => None,
        Local { serving: 1.., .. } => {
            Some((State::Draining, "ENDPOINTS_TERMINATING".into(), "the endpoints on this node are terminating".into()))
        }
        Local { .. } => {
            Some((State::Unhealthy, "NO_LOCAL_ENDPOINTS".into(), "the Service has no endpoint on this node".into()))
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// The verdict as a message without times.
    pub fn message(&self) -> wire::Health {
        wire::Health {
            state: self.state.wire() as i32,
            reason: self.reason.to_string(),
            message: self.message.to_string(),
            ..Default::default()
        }
    }
}

// === impl State ===

impl State {
    /// Every state.
    pub const ALL: [State; 4] = [State::Healthy, State::Unknown, State::Draining, State::Unhealthy];

    /// The state on the wire.
    pub fn wire(self) -> wire::HealthState {
        match self {
            State::Healthy => wire::HealthState::Healthy,
            State::Unknown => wire::HealthState::Unknown,
            State::Draining => wire::HealthState::Draining,
            State::Unhealthy => wire::HealthState::Unhealthy,
        }
    }

    /// The word as people read it.
    pub fn title(self) -> &'static str {
        match self {
            State::Healthy => "Healthy",
            State::Unknown => "Unknown",
            State::Draining => "Draining",
            State::Unhealthy => "Unhealthy",
        }
    }

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            State::Healthy => "healthy",
            State::Unknown => "unknown",
            State::Draining => "draining",
            State::Unhealthy => "unhealthy",
        }
    }
}

#[cfg(test)]
mod tests;
