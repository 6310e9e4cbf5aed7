//! The log of the process: lines on standard error.

use crate::args::log::{Format, LogConfig};
use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Libraries whose debug lines, several per connection, help nobody who did not ask for them by name.
const NOISY: [&str; 9] = [
    "h2",
    "hyper",
    "hyper_util",
    "tonic",
    "tower",
    "rustls",
    "opentelemetry",
    "opentelemetry_sdk",
    "opentelemetry-otlp",
];

/// Sets the one subscriber of the process.
///
/// # Errors
/// If there already is one.
pub fn init_logging(config: LogConfig) -> Result<(), TryInitError> {
    let filter = quiet(config.level);
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match config.format {
        Format::Text => to_stderr.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Json => to_stderr.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()
}

/// Caps the noisy libraries at info, unless the user named them.
fn quiet(level: Targets) -> Targets {
    let default = level.default_level().unwrap_or(LevelFilter::OFF);
    let named: Vec<String> = level.iter().map(|(target, _)| target.to_owned()).collect();
    NOISY
        .into_iter()
        .filter(|noisy| !named.iter().any(|name| name == noisy || name.starts_with(&format!("{noisy}::"))))
        .fold(level, |level, noisy| level.with_target(noisy, default.min(LevelFilter::INFO)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_are_quiet_unless_named_and_never_louder_than_asked() {
        let at = |text: &str| quiet(text.parse().unwrap());
        assert!(at("debug").would_enable("agent::table", &Level::DEBUG));
        assert!(!at("debug").would_enable("h2::codec", &Level::DEBUG));
        assert!(at("debug").would_enable("h2::codec", &Level::INFO));
        assert!(!at("warn").would_enable("h2", &Level::INFO));
        assert!(at("info,h2=trace").would_enable("h2::codec", &Level::TRACE));
        assert!(!at("off").would_enable("hyper", &Level::ERROR));
    }
}
