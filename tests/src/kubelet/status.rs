//! The status of a Pod, as a pure function of what is seen of its containers.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

/// What is seen of a Pod on its node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// By container, initial ones included. A container that is absent has not been tried yet.
    pub containers: BTreeMap<String, Seen>,
    /// Addresses; empty before there is a network, and after.
    pub pod_ips: Vec<IpAddr>,
    /// Whether the network and the volumes of the Pod are there.
    pub prepared: bool,
    /// Why they are not, if something is in the way.
    pub obstacle: Option<String>,
    /// Whether all has ended for good.
    pub finished: bool,
    /// When the node took the Pod.
    pub start: Option<Timestamp>,
}

/// What is seen of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// What it does.
    pub state: State,
    /// How its previous run ended.
    pub last: Option<ContainerStateTerminated>,
    /// Times it was started again.
    pub restarts: i32,
    /// Whether its readiness probe, if it has one, holds it ready.
    pub ready: bool,
    /// Whether its startup probe, if it has one, has succeeded.
    pub started: bool,
    /// Identity of its latest run.
    pub id: Option<String>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// It is to be started.
    Waiting {
        /// One word.
        reason: String,
        /// More words, or none.
        message: Option<String>,
    },
    /// It runs.
    Running {
        /// Since then.
        since: Timestamp,
    },
    /// It ran.
    Terminated(ContainerStateTerminated),
}

// === impl State ===

impl Default for State {
    fn default() -> Self {
        Self::waiting("PodInitializing", None)
    }
}

impl State {
    /// Waiting, for a reason.
    pub fn waiting(reason: &str, message: Option<String>) -> Self {
        Self::Waiting { reason: reason.to_owned(), message }
    }

    fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Terminated(end) => Some(end.exit_code),
            Self::Waiting { .. } | Self::Running { .. } => None,
        }
    }
}

/// Whether an initial container runs beside the others for as long as they do.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The status of a Pod. Conditions of others, such as readiness gates, are left out: a strategic patch keeps them.
pub fn status(pod: &Pod, observed: &Observed, host: &[IpAddr], before: &[PodCondition], now: Timestamp) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let initial = spec.init_containers.unwrap_or_default();
    let generation = pod.metadata.generation;
    let phase = phase(pod, observed);
    let initialising = !initialized(&initial, observed);
    let statuses = |containers: &[Container], is_initial: bool| -> Vec<ContainerStatus> {
        let status = |container| container_status(container, observed, is_initial, initialising && !is_initial);
        containers.iter().map(status).collect()
    };
    let conditions = conditions(pod, observed, phase).into_iter().map(|(type_, reason)| {
        let status = if reason.is_none() { "True" } else { "False" };
        let same = before.iter().find(|old| old.type_ == type_ && old.status == status);
        let (reason, message) = reason.unwrap_or_default();
        PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: same.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
            observed_generation: generation,
            ..Default::default()
        }
    });
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions.collect()),
        container_statuses: Some(statuses(&spec.containers, false)),
        init_container_statuses: (!initial.is_empty()).then(|| statuses(&initial, true)),
        host_ip: host.first().map(IpAddr::to_string),
        host_ips: Some(host.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: observed.pod_ips.first().map(IpAddr::to_string),
        pod_ips: (!observed.pod_ips.is_empty())
            .then(|| observed.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: observed.start.map(Time),
        observed_generation: generation,
        ..Default::default()
    }
}

/// The status of a container; `initialising` says that initial ones are still to end before it.
fn container_status(
    container: &Container,
    observed: &Observed,
    is_initial: bool,
    initialising: bool,
) -> ContainerStatus {
    let absent = || Seen {
        state: match &observed.obstacle {
            Some(obstacle) => State::waiting("ContainerCreating", Some(obstacle.clone())),
            None if initialising => State::waiting("PodInitializing", None),
            None => State::waiting("ContainerCreating", None),
        },
        ..Default::default()
    };
    let seen = observed.containers.get(&container.name).cloned().unwrap_or_else(absent);
    let state = match seen.state.clone() {
        State::Waiting { reason, message } => {
            let waiting = ContainerStateWaiting { reason: Some(reason), message };
            ContainerState { waiting: Some(waiting), ..Default::default() }
        }
        State::Running { since } => {
            let running = ContainerStateRunning { started_at: Some(Time(since)) };
            ContainerState { running: Some(running), ..Default::default() }
        }
        State::Terminated(terminated) => ContainerState { terminated: Some(terminated), ..Default::default() },
    };
    let completed = seen.state.exit_code() == Some(0);
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: seen.id.as_ref().map(|_| container.image.clone().unwrap_or_default()).unwrap_or_default(),
        container_id: seen.id.clone(),
        // An initial container is ready when it has done its work.
        ready: seen.ready || (is_initial && completed),
        started: Some(seen.started),
        restart_count: seen.restarts,
        state: Some(state),
        last_state: Some(ContainerState { terminated: seen.last.clone(), ..Default::default() }),
        ..Default::default()
    }
}

fn initialized(initial: &[Container], observed: &Observed) -> bool {
    initial.iter().all(|container| {
        let seen = observed.containers.get(&container.name);
        seen.is_some_and(|seen| if is_sidecar(container) { seen.started } else { seen.state.exit_code() == Some(0) })
    })
}

fn phase(pod: &Pod, observed: &Observed) -> &'static str {
    let spec = pod.spec.clone().unwrap_or_default();
    let initial = spec.init_containers.unwrap_or_default();
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let seen: Vec<Option<&Seen>> =
        spec.containers.iter().map(|container| observed.containers.get(&container.name)).collect();
    let codes: Vec<Option<i32>> = seen.iter().map(|seen| seen.and_then(|seen| seen.state.exit_code())).collect();
    let initial_codes = || {
        initial.iter().filter(|c| !is_sidecar(c)).filter_map(|c| observed.containers.get(&c.name)?.state.exit_code())
    };
    if observed.finished {
        let fine = codes.iter().flatten().chain(&initial_codes().collect::<Vec<_>>()).all(|code| *code == 0);
        return if fine && codes.iter().all(Option::is_some) { "Succeeded" } else { "Failed" };
    }
    if !initialized(&initial, observed) {
        return "Pending";
    }
    let begun = |seen: &Option<&Seen>| {
        seen.is_some_and(|seen| seen.last.is_some() || !matches!(seen.state, State::Waiting { .. }))
    };
    if !seen.iter().all(begun) {
        return "Pending";
    }
    let all_ended = codes.iter().all(Option::is_some);
    match policy {
        "Never" if all_ended && codes.iter().flatten().any(|code| *code != 0) => "Failed",
        "Never" | "OnFailure" if all_ended && codes.iter().flatten().all(|code| *code == 0) => "Succeeded",
        _ => "Running",
    }
}

type Reason = Option<(&'static str, String)>;

/// The conditions that the kubelet owns, each with why it is not true.
fn conditions(pod: &Pod, observed: &Observed, phase: &str) -> [(&'static str, Reason); 4] {
    let spec = pod.spec.clone().unwrap_or_default();
    let initial = spec.init_containers.unwrap_or_default();
    let completed = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let names = |names: Vec<&str>| format!("[{}]", names.join(" "));
    let prepared = (!observed.prepared).then(|| ("", observed.obstacle.clone().unwrap_or_default()));
    let uninitialised: Vec<&str> = initial
        .iter()
        .filter(|container| !initialized(std::slice::from_ref(container), observed))
        .map(|container| container.name.as_str())
        .collect();
    let initialised = (!uninitialised.is_empty() && phase != "Succeeded")
        .then(|| ("ContainersNotInitialized", format!("containers with incomplete status: {}", names(uninitialised))));
    let sidecars = initial.iter().filter(|container| is_sidecar(container));
    let unready: Vec<&str> = sidecars
        .chain(&spec.containers)
        .filter(|container| observed.containers.get(&container.name).is_none_or(|seen| !seen.ready))
        .map(|container| container.name.as_str())
        .collect();
    let containers_ready = match completed {
        Some(reason) => Some((reason, String::new())),
        None if unready.is_empty() => None,
        None => Some(("ContainersNotReady", format!("containers with unready status: {}", names(unready)))),
    };
    let has = |type_: &str| {
        let given = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        given.into_iter().any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    let closed = spec.readiness_gates.iter().flatten().find(|gate| !has(&gate.condition_type));
    let ready = match (&containers_ready, closed) {
        (Some(reason), _) => Some(reason.clone()),
        (None, Some(gate)) => Some((
            "ReadinessGatesNotReady",
            format!("corresponding condition of pod readiness gate {:?} is not True", gate.condition_type),
        )),
        (None, None) => None,
    };
    [
        ("PodReadyToStartContainers", prepared),
        ("Initialized", initialised),
        ("ContainersReady", containers_ready),
        ("Ready", ready),
    ]
}

#[cfg(test)]
mod tests;
