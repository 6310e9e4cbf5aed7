//! The entry node's side of a flow that another agent takes to its endpoint: when the header is sent, and sent again.
//!
//! Datagrams do not wait for an answer. Whether the agent takes the flow shows by its word, or not at all; then it is asked
//! again with later datagrams, and given up in the end.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    hop::{answer::Answer, datagram::Word, introduction::Introduction},
    local::{Local, Upstream},
    report::outcome::Outcome,
};

/// How long a header may be on its way before the next datagram brings another one.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many headers are sent without a word.
const TIMES: u8 = 3;

/// The other agent, as one flow knows it.
pub struct Entry {
    said: Introduction,
    agent: Rc<Upstream>,
    state: Cell<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many headers were sent, the last one then.
    Asked(u8, Instant),
    /// It has taken the flow.
    Taken,
}

/// What is to be done before a datagram is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Go,
    /// The header goes first.
    Ask,
    /// The agent says nothing: the flow ends, and another one goes another way.
    GiveUp,
}

// === impl Entry ===

impl Entry {
    /// Of a flow whose first datagram brings the header.
    pub fn new(said: Introduction, agent: Rc<Upstream>, now: Instant) -> Self {
        Self { said, agent, state: Cell::new(State::Asked(0, now)) }
    }

    /// What is to be done at `now`.
    pub fn step(&self, now: Instant) -> Step {
        let (step, after) = step(self.state.get(), now);
        self.state.set(after);
        step
    }

    /// The header, anew; `None` if the keys are gone.
    pub fn header(&self, local: &Local) -> Option<Vec<u8>> {
        let table = local.table();
        table.0.hop.as_ref()?.keys.seal(&self.said, SystemTime::now()).ok()
    }

    /// The agent said something. An error is how the flow ends.
    ///
    /// # Errors
    /// The endpoint cannot be reached from its node.
    pub fn hear(&self, word: Word, now: Instant) -> Result<(), Outcome> {
        match word {
            Word::Answer(Answer::Connected) => {
                self.agent.succeeded();
                self.state.set(State::Taken);
            }
            Word::Answer(Answer::Failed(outcome)) => return Err(outcome),
            // It was restarted, or has other sockets by now. While a header is on its way there is nothing to do.
            Word::Who if self.state.get() == State::Taken => self.state.set(State::Asked(0, now)),
            // Tables differ for a moment whenever endpoints change: it is asked again.
            Word::Who | Word::Answer(Answer::Unknown) => {}
        }
        Ok(())
    }

    /// It cannot be reached, or says nothing: for a while it is left alone.
    pub fn give_up(&self, now: Instant) {
        if self.agent.is_well() {
            tracing::warn!(endpoint = %self.said.endpoint, "the agent of its node takes no UDP flow; it sees this node");
        }
        self.agent.failed(now);
    }
}

fn step(state: State, now: Instant) -> (Step, State) {
    match state {
        State::Taken => (Step::Go, state),
        State::Asked(0, _) => (Step::Ask, State::Asked(1, now)),
        State::Asked(_, last) if now < last + PATIENCE => (Step::Go, state),
        State::Asked(times, _) if times < TIMES => (Step::Ask, State::Asked(times + 1, now)),
        State::Asked(..) => (Step::GiveUp, state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_asked_again_and_given_up() {
        let began = Instant::now();
        let mut state = State::Asked(0, began);
        let mut at = |millis| {
            let (next, after) = step(state, began + Duration::from_millis(millis));
            state = after;
            next
        };
        let steps = [0, 1, 999, 1000, 1001, 5000, 5001, 5999].map(&mut at);
        assert_eq!(steps, [Step::Ask, Step::Go, Step::Go, Step::Ask, Step::Go, Step::Ask, Step::Go, Step::Go]);
        assert_eq!([6000, 6001].map(&mut at), [Step::GiveUp; 2]);
        assert_eq!(step(State::Taken, began + Duration::from_secs(3600)).0, Step::Go);
    }
}
