//! What is to be done next about the certificates that the gateways make. Pure: every replica comes to the same step, and
//! the version of the Secret decides whose step is taken.

use std::time::{Duration, SystemTime};

use super::{
    authority::{self, SERVING_LIFE},
    held::{Held, Next},
};

/// A certificate of the discovery port is replaced when this much of its life is left.
const RENEW: Duration = Duration::from_secs(SERVING_LIFE.as_secs() / 3);

/// The next authority is made when this much of the life of the present one is left. No certificate is cut short by then.
const SUCCEED: Duration = Duration::from_secs(365 * 24 * 3600);

/// A new authority signs only after agents have had this long to read it. The kubelet brings it to them in two minutes;
/// the rest is for nodes that are away.
const PUBLISHED: Duration = Duration::from_secs(24 * 3600);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make everything anew: there is nothing, or nothing that is of use any more.
    Create,
    /// Note that agents can have the next authority from now on.
    Note,
    /// Sign with the next authority from now on.
    Succeed,
    /// Sign another certificate for the discovery port.
    Issue,
    /// Make the next authority.
    Announce,
    /// Trust authorities no longer whose time is over.
    Prune,
    /// Nothing before this time.
    Wait(SystemTime),
}

/// What is to be done at `now`, for a discovery port with these `names`. `is_published` says that agents can have all
/// that `held` tells them to trust.
pub fn plan(now: SystemTime, held: Option<&Held>, names: &[String], is_published: bool) -> Step {
    let Some(held) = held else { return Step::Create };
    let due = [
        (signer_ends(held), Step::Create),
        (next_is_seen(held, is_published, now), Step::Note),
        (next_is_known(held), Step::Succeed),
        (serving_ends(held, names, now), Step::Issue),
        (succession(held), Step::Announce),
        (held.former.iter().map(|(_, end)| *end).min(), Step::Prune),
    ];
    let overdue = due.iter().find(|(at, _)| at.is_some_and(|at| at <= now));
    let later = || due.iter().filter_map(|(at, _)| *at).min().unwrap_or(now + RENEW);
    overdue.map_or_else(|| Step::Wait(later()), |(_, step)| *step)
}

/// What is held after a step.
///
/// # Errors
/// Those of making certificates.
pub fn take(step: Step, held: Option<&Held>, names: &[String], now: SystemTime) -> Result<Held, authority::Error> {
    let (step, mut after) = match held {
        Some(held) if step != Step::Create => (step, held.clone()),
        Some(_) | None => return Held::make(names, now),
    };
    match step {
        Step::Note => {
            if let Some(next) = &mut after.next {
                next.published = Some(now);
            }
        }
        Step::Succeed => {
            if let Some(Next { authority, .. }) = after.next.take() {
                let former = std::mem::replace(&mut after.signer, authority);
                after.former.push((former.certificate, former.facts.not_after));
                after.serving = after.signer.issue(&wanted(&after, names, now), now)?;
            }
        }
        Step::Issue => after.serving = after.signer.issue(&wanted(&after, names, now), now)?,
        Step::Announce => after.next = Some(Next { authority: authority::Authority::make(now)?, published: None }),
        Step::Prune => after.former.retain(|(_, end)| *end > now),
        Step::Create | Step::Wait(_) => {}
    }
    Ok(after)
}

/// Names for a new certificate. While the present one is of use its names are kept: replicas with other options, as during
/// an update, would otherwise replace each other's for ever.
fn wanted(held: &Held, names: &[String], now: SystemTime) -> Vec<String> {
    let is_of_use = held.serving.facts.not_after.checked_sub(RENEW).is_some_and(|renew| renew > now);
    let kept = held.serving.facts.names.iter().filter(|name| is_of_use && !names.contains(name));
    names.iter().chain(kept).cloned().collect()
}

fn signer_ends(held: &Held) -> Option<SystemTime> {
    Some(held.signer.facts.not_after)
}

fn next_is_seen(held: &Held, is_published: bool, now: SystemTime) -> Option<SystemTime> {
    let is_new = held.next.as_ref().is_some_and(|next| next.published.is_none());
    (is_new && is_published).then_some(now)
}

fn next_is_known(held: &Held) -> Option<SystemTime> {
    held.next.as_ref()?.published?.checked_add(PUBLISHED)
}

/// When the certificate is to be replaced: in time, or at once if it is not what it should be.
fn serving_ends(held: &Held, names: &[String], now: SystemTime) -> Option<SystemTime> {
    let facts = &held.serving.facts;
    let is_right = facts.issuer == held.signer.facts.subject && names.iter().all(|name| facts.names.contains(name));
    if !is_right {
        return Some(now);
    }
    // A certificate that ends with its authority cannot be had for longer.
    let ends_with_signer = facts.not_after >= held.signer.facts.not_after;
    (!ends_with_signer).then(|| facts.not_after.checked_sub(RENEW)).flatten()
}

fn succession(held: &Held) -> Option<SystemTime> {
    let is_first = held.next.is_none();
    is_first.then(|| held.signer.facts.not_after.checked_sub(SUCCEED)).flatten()
}

#[cfg(test)]
mod tests;
