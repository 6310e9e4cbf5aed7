//! `portico get`: the state of a running gateway, for people and scripts.
//!
//! Asking ([`source`]) and writing are at the two ends; what things look like in between is pure ([`show`], [`output`]).

/// Options to configuration.
pub mod args;
/// Ages as kubectl writes them.
pub mod age;
/// Columns three spaces apart.
pub mod table;
/// What can be asked for.
pub mod kind;
/// Messages to cells and documents.
pub mod show;
/// What a watch has told so far.
pub mod state;
/// Tables, JSON and YAML.
pub mod output;
/// Asking a gateway.
pub mod source;

use api::proto::inspect::Object;
use args::GetConfig;
use futures::StreamExt;
use kind::Kind;
use output::{Format, Layout, Printer};
use show::{Item, Key, Shown};
use source::Source;
use state::{Change, State};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::SystemTime;

/// Why a gateway's state could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No gateway accepts connections.
    #[error(
        "cannot reach the gateway at {0}; check that it runs, and that --gateway names its --health-listen address"
    )]
    Unreachable(String),
    /// The gateway refused, or did not answer in time.
    #[error("the gateway at {url} did not answer: {message}")]
    Answer {
        /// Where it was asked.
        url: String,
        /// What it said.
        message: String,
    },
    /// A watch ended, as it does when the gateway stops.
    #[error("the gateway at {url} ended the watch")]
    Ended {
        /// Where it was asked.
        url: String,
    },
    /// There is nothing of this name.
    #[error("{kind} {name:?} not found{place}")]
    NotFound {
        /// Plural of the kind.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// ` in namespace "NAME"`, or nothing for what is in none.
        place: String,
    },
    /// Standard output or standard error is broken.
    #[error("cannot write the result")]
    Write(#[from] io::Error),
}

/// Shows what was asked for: results to `out`, warnings to `warnings`. With a watch it returns only in error.
///
/// # Errors
/// [`GetError`]. A reader of `out` that has gone away, such as `head`, is no error.
pub async fn run(config: GetConfig, out: impl Write, warnings: impl Write) -> Result<(), GetError> {
    let source = Source::connect(&config.gateways).await?;
    let shown = match config.watch {
        true => watch(&source, config, out, warnings).await,
        false => list(&source, config, out, warnings).await,
    };
    match shown {
        Err(GetError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A table of Services as `portico get services` prints it. A column with the namespace leads if there are several.
pub fn services_table(objects: &[Object], wide: bool, now: SystemTime) -> String {
    let items = objects.iter().map(|object| Item::Object(Box::new(object.clone()))).collect();
    let shown = show_all(Kind::Services, items, now);
    let namespaces: BTreeSet<&str> = shown.iter().map(|shown| shown.key.namespace.as_str()).collect();
    let format = if wide { Format::Wide } else { Format::Table };
    let layout = Layout { kind: Kind::Services, format, namespaces: namespaces.len() > 1, single: false };
    output::text(layout, &shown)
}

async fn list(
    source: &Source,
    config: GetConfig,
    mut out: impl Write,
    mut warnings: impl Write,
) -> Result<(), GetError> {
    let GetConfig { query, layout, .. } = config;
    let listing = source.list(&query).await?;
    let shown = show_all(query.kind, listing.items, SystemTime::now());
    for warning in listing.warnings.iter().chain(shown.iter().flat_map(|shown| &shown.warnings)) {
        writeln!(warnings, "warning: {warning}")?;
    }
    if shown.is_empty() && layout.single {
        let place = match query.kind.is_namespaced() {
            true => format!(" in namespace {:?}", query.namespace),
            false => String::new(),
        };
        return Err(GetError::NotFound { kind: query.kind.plural(), name: query.name, place });
    }
    if shown.is_empty() && matches!(layout.format, Format::Table | Format::Wide) {
        match query.kind.is_namespaced() && !query.namespace.is_empty() {
            true => writeln!(warnings, "No resources found in {} namespace.", query.namespace)?,
            false => writeln!(warnings, "No resources found.")?,
        }
    }
    out.write_all(output::text(layout, &shown).as_bytes())?;
    Ok(out.flush()?)
}

async fn watch(source: &Source, config: GetConfig, out: impl Write, mut warnings: impl Write) -> Result<(), GetError> {
    let GetConfig { query, layout, .. } = config;
    let kind = query.kind;
    let mut changes = source.watch(query).await?;
    let (mut state, mut printer, mut started) = (State::default(), Printer::new(layout, out), false);
    while let Some(change) = changes.next().await {
        let change = change?;
        let is_synced = change == Change::Synced;
        let changed = state.apply(change);
        let now = SystemTime::now();
        if !started {
            // Held back until it is whole, so that the table is aligned.
            if is_synced {
                started = true;
                let shown: Vec<Shown> =
                    state.groups().filter_map(|(key, items)| show::show(kind, key, items, now)).collect();
                for warning in shown.iter().flat_map(|shown| &shown.warnings) {
                    writeln!(warnings, "warning: {warning}")?;
                }
                printer.start(&shown)?;
            }
            continue;
        }
        for changed in changed {
            if let Some(shown) = show::show(kind, &changed.group, changed.items.iter(), now) {
                for warning in &shown.warnings {
                    writeln!(warnings, "warning: {warning}")?;
                }
                printer.event(changed.event, &shown)?;
            }
        }
    }
    Ok(())
}

/// Everything by namespace and name.
fn show_all(kind: Kind, items: Vec<Item>, now: SystemTime) -> Vec<Shown> {
    let mut state = State::default();
    for item in items {
        state.apply(Change::Updated(item));
    }
    let groups: Vec<(&Key, _)> = state.groups().collect();
    groups.into_iter().filter_map(|(key, items)| show::show(kind, key, items, now)).collect()
}
