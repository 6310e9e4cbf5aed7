//! The numbers of an admin port, in the text format of Prometheus.

use std::net::SocketAddr;

use crate::client;

/// One answer of `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    text: String,
}

/// Asks the admin port at this address.
///
/// # Panics
/// When it does not answer.
pub async fn of(admin: SocketAddr) -> Metrics {
    let answer = client::get([127, 0, 0, 1].into(), admin, "admin", "/metrics").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    Metrics { text: String::from_utf8(answer.body.to_vec()).expect("metrics are text") }
}

// === impl Metrics ===

impl From<String> for Metrics {
    fn from(text: String) -> Self {
        Self { text }
    }
}

impl Metrics {
    /// The sum of all series of this name whose labels have these values; 0 if there is none.
    ///
    /// # Panics
    /// When a value is not a number.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }

    /// The series of this name whose labels have these values: the rest of the line after the name, and its value.
    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a str, f64)> {
        let all = self.text.lines().filter_map(move |line| line.strip_prefix(name));
        // The name ends here, and is not the beginning of a longer one.
        let all = all.filter(|rest| rest.starts_with(['{', ' ']));
        let wanted = all.filter(|rest| labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\""))));
        wanted.map(|rest| {
            let (labels, value) = rest.rsplit_once(' ').expect("a value ends the line");
            (labels, value.parse().unwrap_or_else(|error| panic!("{rest}: {error}")))
        })
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }
}
