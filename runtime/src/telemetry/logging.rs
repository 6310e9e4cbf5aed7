//! The log of the process: lines on standard error.

use crate::args::log::{Format, LogConfig};
use std::io::IsTerminal;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
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
    subscriber(config, std::io::stderr().is_terminal(), std::io::stderr).try_init()
}

/// The subscriber, with or without colors, for anything that takes lines.
fn subscriber<W>(config: LogConfig, colors: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colors);
    let lines = match config.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(quiet(config.level)))
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
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use tracing::Level;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What one warning and one debug line become, at level info.
    fn written(format: Format) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let config = LogConfig { format, level: "info".parse().unwrap() };
        tracing::subscriber::with_default(subscriber(config, false, move || writer.clone()), || {
            tracing::warn!(service = "shop/web", ports = 2, "no endpoints\nleft");
            tracing::debug!("not written");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_flat_object_per_line() {
        let text = written(Format::Json);
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in
            [r#""level":"WARN""#, r#""message":"no endpoints\nleft""#, r#""service":"shop/web""#, r#""ports":2"#]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.starts_with('{') && text.ends_with("}\n") && !text.contains("\"fields\""), "{text}");
    }

    #[test]
    fn text_is_for_people() {
        let text = written(Format::Text);
        assert!(text.contains("WARN") && text.contains("service=\"shop/web\" ports=2"), "{text}");
        assert!(!text.contains("not written") && !text.contains('\u{1b}'), "{text}");
    }

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
