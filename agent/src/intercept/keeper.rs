//! The loop that keeps the rules in step with the tables, renews them, and puts them back when somebody removed them.

use std::{num::NonZeroU16, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior},
};

use super::{
    LEASE, OnExit, Source, host,
    install::{Health, Installer},
    program::Error,
    ruleset::Ruleset,
    state::State,
};
use crate::{apply::control::Round, duty::DutyCycle};

/// How often the rules are renewed and looked at.
const BEAT: Duration = Duration::from_secs(4);

/// How long to wait before rules that could not be installed are tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the rules in step with the tables.
pub struct Keeper {
    installer: Installer,
    on_exit: OnExit,
    source: Source,
    state: State,
    /// Rounds whose rules are not in force.
    waiting: Vec<Round>,
    /// The newest ruleset is not in force.
    behind: bool,
    /// When the rules may follow again.
    duty: DutyCycle,
    /// Node ports that no connection of this host begins at.
    reserved: Option<(NonZeroU16, NonZeroU16)>,
}

// === impl Keeper ===

impl Keeper {
    /// A keeper that has done nothing yet.
    pub fn new(installer: Installer, on_exit: OnExit, source: Source, state: State) -> Self {
        let duty = DutyCycle::new(Instant::now());
        Self { installer, on_exit, source, state, waiting: Vec::new(), behind: false, duty, reserved: None }
    }

    /// Follows until it is `stopped`. Where nobody is left to stop it, the rules are left to their lease.
    pub async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut following = true;
        loop {
            let due = self.duty.due();
            let changed = async {
                tokio::time::sleep_until(due).await;
                self.source.progress.changed().await
            };
            tokio::select! {
                changed = changed, if following => match changed {
                    Ok(()) => self.follow().await,
                    // The control loop has ended; the last table stays in force.
                    Err(_) => following = false,
                },
                () = tokio::time::sleep(RETRY), if self.behind => self.follow().await,
                _ = beat.tick() => self.look().await,
                told = &mut stopped => {
                    if told.is_ok() {
                        self.end().await;
                    }
                    return;
                }
            }
        }
    }

    async fn follow(&mut self) {
        // Before the table is read: it holds what these rounds have brought.
        while let Ok(round) = self.source.rounds.try_recv() {
            self.waiting.push(round);
        }
        let table = {
            let progress = self.source.progress.borrow_and_update();
            if progress.applied.is_none() {
                return;
            }
            progress.table.clone()
        };
        self.reserve(table.node_port_range);
        let began = Instant::now();
        let ruleset = Ruleset::new(&table);
        let destinations = ruleset.count();
        let applied = self.installer.apply(ruleset).await;
        self.duty.worked(began, Instant::now());
        self.behind = applied.is_err();
        match applied {
            Ok(()) => {
                tracing::debug!(destinations, "packet rules follow the table");
                self.state.in_force(destinations);
                self.waiting.drain(..).for_each(&self.source.in_force);
                if let Some(installed) = self.source.installed.take() {
                    installed();
                }
            }
            Err(error) => {
                tracing::error!(reason = cause(&error), "cannot install packet rules: {error}; trying again");
                self.state.failed(&error);
            }
        }
    }

    /// Keeps connections of this host away from node ports.
    fn reserve(&mut self, range: Option<(NonZeroU16, NonZeroU16)>) {
        if range == self.reserved {
            return;
        }
        self.reserved = range;
        if let Some((first, last)) = range
            && let Err(error) = host::reserve_ports(first.get()..=last.get())
        {
            tracing::warn!(%first, %last, "cannot reserve node ports, a connection of this host may take one: {error}");
        }
    }

    /// Renews the rules, and puts them back where they were if they are not.
    async fn look(&mut self) {
        match self.installer.renew().await {
            Ok(Health::Good) => {}
            Ok(Health::Replaced) => {
                tracing::warn!("another agent of this node has installed its packet rules; leaving them alone");
            }
            Ok(Health::Broken) => {
                tracing::warn!("somebody removed or changed the packet rules; installing them again");
                match self.installer.repair().await {
                    Ok(()) => self.state.repaired(),
                    Err(error) => {
                        tracing::error!(reason = cause(&error), "cannot install packet rules: {error}; trying again");
                        self.state.failed(&error);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(reason = cause(&error), "cannot look after the packet rules: {error}");
                self.state.failed(&error);
            }
        }
    }

    async fn end(&mut self) {
        if self.on_exit == OnExit::Remove
            && let Err(error) = self.installer.remove().await
        {
            tracing::warn!(
                reason = cause(&error),
                "cannot remove packet rules: {error}; they are inert after {LEASE:?}"
            );
        }
    }
}

fn cause(error: &Error) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}
