//! One container: its starts, its probes, its restarts and its end.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, ContainerStateTerminated, LifecycleHandler},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use nix::sys::signal::Signal;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{Context, launch};
use crate::kubelet::{
    backoff::CrashLoop,
    probe::{self, Target},
    process::Process,
    running::Name,
    status::State,
};

/// How soon a container that lacks something, such as an image, is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// What a container has to end after its hook, however long the hook took. The real kubelet's value.
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// How much of a termination message is kept.
const MESSAGE: usize = 4096;

/// When the containers of a Pod are to end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ending {
    /// Until then. `None` while they are to run.
    pub deadline: Option<Instant>,
    /// Whether it is the turn of the sidecars, which end last.
    pub sidecars: bool,
}

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restarts {
    /// Always.
    Always,
    /// When it failed.
    OnFailure,
    /// Never.
    Never,
}

/// A container to be run until its end.
pub struct Job {
    context: Arc<Context>,
    container: Container,
    restarts: Restarts,
    sidecar: bool,
    ending: watch::Receiver<Ending>,
}

// === impl Restarts ===

impl Restarts {
    /// From the `restartPolicy` of a Pod.
    pub fn new(policy: &str) -> Self {
        match policy {
            "Never" => Self::Never,
            "OnFailure" => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn after(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

// === impl Job ===

impl Job {
    /// A container of a Pod.
    pub fn new(
        context: &Arc<Context>,
        container: Container,
        restarts: Restarts,
        sidecar: bool,
        ending: watch::Receiver<Ending>,
    ) -> Self {
        Self { context: context.clone(), container, restarts, sidecar, ending }
    }

    /// Runs the container, again and again, until it has ended for good. Gives its exit code.
    pub async fn supervise(self) -> i32 {
        let mut crashes = CrashLoop::default();
        let mut refusals = 0;
        loop {
            let run = self.context.seen(&self.container.name);
            let run = run.restarts + i32::from(run.id.is_some());
            let begun = Instant::now();
            let prepared = tokio::select! {
                prepared = launch::prepare(&self.context, &self.container, run) => prepared,
                () = self.asked_to_end() => return 137,
            };
            let (wait, code) = match prepared {
                Ok(prepared) => {
                    refusals = 0;
                    let code = self.once(&prepared, run).await;
                    if self.is_ending() || !self.restarts.after(code) {
                        return code;
                    }
                    (crashes.wait(begun.elapsed()), code)
                }
                Err(refusal) => {
                    self.see_waiting(refusal.reason(refusals), Some(refusal.message));
                    refusals += 1;
                    (RETRY, 128)
                }
            };
            if refusals == 0 && !wait.is_zero() {
                let message =
                    format!("back-off {}s restarting failed container {:?}", wait.as_secs(), self.container.name);
                self.see_waiting("CrashLoopBackOff", Some(message));
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.asked_to_end() => return code,
            }
        }
    }

    fn see_waiting(&self, reason: &str, message: Option<String>) {
        self.context.see(&self.container.name, |seen| {
            if let State::Terminated(end) = &seen.state {
                seen.last = Some(end.clone());
            }
            seen.state = State::waiting(reason, message);
        });
    }

    fn name(&self) -> Name {
        let pod = &self.context.pod;
        let namespace = pod.namespace().unwrap_or_default();
        Name { namespace, pod: pod.name_any(), container: self.container.name.clone() }
    }

    fn is_ending(&self) -> bool {
        let ending = *self.ending.borrow();
        ending.deadline.is_some() && (!self.sidecar || ending.sidecars)
    }

    async fn asked_to_end(&self) {
        let asked = |ending: &Ending| ending.deadline.is_some() && (!self.sidecar || ending.sidecars);
        if self.ending.clone().wait_for(asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs the container once. Gives its exit code.
    async fn once(&self, prepared: &launch::Prepared, run: i32) -> i32 {
        let name = &self.container.name;
        let begun = Timestamp::now();
        let id = format!("processes://{}-{name}-{run}", self.context.pod.uid().unwrap_or_default());
        let mut process = match prepared.launch.start().await {
            Ok(process) => process,
            Err(error) => {
                self.see_end(&id, run, begun, 128, "StartError", Some(format!("{error:#}")));
                return 128;
            }
        };
        let log = prepared.launch.log.clone();
        let _listed = self.context.kubelet.running.list(self.name(), log, process.access());
        let since = Timestamp::now();
        self.context.see(name, |seen| {
            if let State::Terminated(end) = &seen.state {
                seen.last = Some(end.clone());
            }
            seen.state = State::Running { since };
            (seen.restarts, seen.id) = (run, Some(id.clone()));
            (seen.ready, seen.started) = (false, false);
        });
        let target =
            Target { address: self.context.address(), container: self.container.clone(), access: process.access() };
        let unhealthy = Notify::new();
        let code = tokio::select! {
            code = self.until_end(&mut process, prepared, &target, &unhealthy) => code,
            () = self.health(&target, &unhealthy) => 255,
        };
        let reason = if code == 0 { "Completed" } else { "Error" };
        let message = std::fs::read(&prepared.message).ok().filter(|message| !message.is_empty());
        let message =
            message.map(|message| String::from_utf8_lossy(&message[..message.len().min(MESSAGE)]).into_owned());
        self.see_end(&id, run, since, code, reason, message);
        code
    }

    fn see_end(&self, id: &str, run: i32, since: Timestamp, code: i32, reason: &str, message: Option<String>) {
        let end = ContainerStateTerminated {
            container_id: Some(id.to_owned()),
            exit_code: code,
            reason: Some(reason.to_owned()),
            message,
            started_at: Some(Time(since)),
            finished_at: Some(Time(Timestamp::now())),
            ..Default::default()
        };
        self.context.see(&self.container.name, |seen| {
            if let State::Terminated(before) = &seen.state {
                seen.last = Some(before.clone());
            }
            (seen.restarts, seen.id) = (run, Some(id.to_owned()));
            (seen.ready, seen.started) = (false, false);
            seen.state = State::Terminated(end);
        });
    }

    /// Waits until the container ends, and ends it when it is unhealthy or asked to.
    async fn until_end(
        &self,
        process: &mut Process,
        prepared: &launch::Prepared,
        target: &Target,
        unhealthy: &Notify,
    ) -> i32 {
        let lifecycle = self.container.lifecycle.clone().unwrap_or_default();
        if let Some(hook) = &lifecycle.post_start {
            tokio::select! {
                code = process.wait() => return code,
                outcome = probe::send::hook(hook, target) => if let Err(reason) = outcome {
                    tracing::warn!(container = self.container.name, reason, "the hook postStart failed");
                    unhealthy.notify_one();
                },
            }
        }
        tokio::select! {
            code = process.wait() => return code,
            () = unhealthy.notified() => {}
            () = self.asked_to_end() => {}
        }
        let spec = self.context.pod.spec.as_ref();
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(super::GRACE);
        let own = Instant::now() + Duration::from_secs(grace.max(0).unsigned_abs());
        self.end(process, prepared.stop, lifecycle.pre_stop.as_ref(), target, own).await
    }

    /// Ends a container: the hook, the signal, and at the deadline SIGKILL.
    async fn end(
        &self,
        process: &mut Process,
        signal: Signal,
        hook: Option<&LifecycleHandler>,
        target: &Target,
        own: Instant,
    ) -> i32 {
        if let Some(hook) = hook {
            let hook = async {
                tokio::select! {
                    outcome = probe::send::hook(hook, target) => if let Err(reason) = outcome {
                        tracing::warn!(container = self.container.name, reason, "the hook preStop failed");
                    },
                    () = self.overdue(own) => {}
                }
            };
            tokio::select! {
                code = process.wait() => return code,
                () = hook => {}
            }
        }
        let least = if hook.is_some() { Instant::now() + AFTER_HOOK } else { Instant::now() };
        process.signal(signal);
        let overdue = async {
            self.overdue(own).await;
            sleep_until(least).await;
        };
        tokio::select! {
            code = process.wait() => return code,
            () = overdue => {}
        }
        process.signal(Signal::SIGKILL);
        process.wait().await
    }

    /// Waits for the deadline, which may be moved forward meanwhile. Without one `own` counts.
    async fn overdue(&self, own: Instant) {
        let mut ending = self.ending.clone();
        loop {
            let deadline = ending.borrow_and_update().deadline.unwrap_or(own);
            if timeout_at(deadline, ending.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Probes for ever, and sees to what the probes decide. While the container ends only readiness is of interest.
    async fn health(&self, target: &Target, unhealthy: &Notify) {
        let name = &self.container.name;
        let started = Instant::now();
        let fail = |failed: bool| {
            if failed {
                unhealthy.notify_one();
            }
        };
        if let Some(startup) = &self.container.startup_probe {
            let succeeded = probe::repeat(startup, target, started, false, |held, failed| {
                fail(failed);
                if held { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            tokio::select! {
                () = succeeded => {}
                () = self.asked_to_end() => std::future::pending().await,
            }
        }
        let ready = self.container.readiness_probe.is_none();
        self.context.see(name, |seen| (seen.started, seen.ready) = (true, ready));
        let readiness = async {
            let Some(readiness) = &self.container.readiness_probe else { return std::future::pending().await };
            let tell = |held, _| {
                if self.context.seen(name).ready != held {
                    self.context.see(name, |seen| seen.ready = held);
                }
                ControlFlow::Continue(())
            };
            probe::repeat(readiness, target, started, false, tell).await;
        };
        let liveness = async {
            let Some(liveness) = &self.container.liveness_probe else { return std::future::pending().await };
            let tell = |_, failed| {
                fail(failed);
                ControlFlow::Continue(())
            };
            tokio::select! {
                () = probe::repeat(liveness, target, started, true, tell) => {}
                () = self.asked_to_end() => std::future::pending().await,
            }
        };
        tokio::join!(readiness, liveness);
    }
}
