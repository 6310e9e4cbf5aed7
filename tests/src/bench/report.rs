//! Medians, ratios, the table and the JSON file.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    proxy::{Proxy, Running},
    round::{Plan, Sample, Series},
    scenario::Scenario,
};

/// From this share of waiting on, the machine was not idle enough for the other figures to mean much.
const BUSY: f64 = 0.25;

/// All that one run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Seconds since 1970 at the end of the run.
    finished: u64,
    machine: Machine,
    proxies: Vec<Version>,
    rounds: usize,
    seconds_per_round: f64,
    scenarios: Vec<Compared>,
}

#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    kernel: String,
}

#[derive(Debug, Serialize)]
struct Version {
    proxy: Proxy,
    version: String,
}

/// One scenario, all proxies.
#[derive(Debug, Serialize)]
struct Compared {
    scenario: Scenario,
    results: Vec<Measured>,
}

/// One proxy in one scenario.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    proxy: Proxy,
    /// The median of each figure over the rounds, each by itself.
    median: Sample,
    /// What this proxy costs per request, divided by what Portico does: above 1 it costs more.
    cost_to_portico: Option<f64>,
    rounds: Vec<Sample>,
}

impl Report {
    /// Sums up a run.
    pub fn new(proxies: &[Running], plan: Plan, scenarios: Vec<(Scenario, Vec<Series>)>) -> Self {
        Self {
            finished: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            machine: Machine::here(),
            proxies: proxies
                .iter()
                .map(|running| Version { proxy: running.proxy, version: running.version.clone() })
                .collect(),
            rounds: plan.rounds,
            seconds_per_round: plan.measure.as_secs_f64(),
            scenarios: scenarios.into_iter().map(|(scenario, series)| Compared::new(scenario, series)).collect(),
        }
    }

    /// Writes the report as JSON, and the directory it lies in if need be.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let write = || {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            fs::write(path, serde_json::to_vec_pretty(self)?)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// The tables, in Markdown: cost per request with its ratio, then what it looked like from outside.
    pub fn markdown(&self) -> String {
        let mut text = "Processor time of the proxy per request, in microseconds; less is better\n\n".to_owned();
        self.costs(&mut text);
        text.push_str("\nRequests per second, and milliseconds per request (median, 99th percentile)\n\n");
        self.service(&mut text);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\nMedians of {} interleaved rounds of {} s, proxy on one core, on {}, Linux {}:\n",
            self.rounds, self.seconds_per_round, self.machine.processor, self.machine.kernel
        );
        for version in &self.proxies {
            let _ = writeln!(text, "- {}", version.version);
        }
        text
    }

    fn costs(&self, text: &mut String) {
        let proxies: Vec<Proxy> = self.proxies.iter().map(|version| version.proxy).collect();
        let peers: Vec<Proxy> = if proxies.contains(&Proxy::Portico) {
            proxies.iter().copied().filter(|proxy| *proxy != Proxy::Portico).collect()
        } else {
            Vec::new()
        };
        let ratio = |found: &Measured| found.cost_to_portico.map_or_else(String::new, |ratio| format!("{ratio:.2}"));

        let names = proxies.iter().map(|proxy| proxy.name().to_owned());
        header(text, names.chain(peers.iter().map(|peer| format!("{} / Portico", peer.name()))).collect());
        for scenario in &self.scenarios {
            let figures =
                proxies.iter().map(|proxy| scenario.cell(*proxy, |found| format!("{:.1}", found.median.cpu_micros)));
            let ratios = peers.iter().map(|peer| scenario.cell(*peer, ratio));
            row(text, scenario.scenario.title(), figures.chain(ratios));
        }
    }

    fn service(&self, text: &mut String) {
        let show = |found: &Measured| {
            let Sample { rate, p50_micros, p99_micros, .. } = found.median;
            format!("{rate:.0} ({:.2}, {:.2})", p50_micros / 1e3, p99_micros / 1e3)
        };
        header(text, self.proxies.iter().map(|version| version.proxy.name().to_owned()).collect());
        for scenario in &self.scenarios {
            let figures = self.proxies.iter().map(|version| scenario.cell(version.proxy, show));
            row(text, scenario.scenario.title(), figures);
        }
    }

    /// Says so if a proxy had to share its processor with something else, and where that was worst.
    pub fn warning(&self) -> Option<String> {
        let found = self.scenarios.iter().flat_map(|compared| {
            compared.results.iter().map(|found| (found.median.waited, found.proxy, compared.scenario))
        });
        let (waited, proxy, scenario) = found.max_by(|one, other| one.0.total_cmp(&other.0))?;
        (waited > BUSY).then(|| {
            format!(
                "the machine was busy with something else: {} waited for its processor for {:.0} % of the time it ran \
                 in {}; caches emptied meanwhile count as a proxy's cost, so run this again on an idle machine",
                proxy.name(),
                waited * 100.0,
                scenario.title(),
            )
        })
    }
}

impl Machine {
    fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or_else(|| "an unnamed processor".to_owned(), |(_, name)| name.to_owned());
        Self { processor, kernel: read("/proc/sys/kernel/osrelease").trim().to_owned() }
    }
}

impl Compared {
    fn new(scenario: Scenario, series: Vec<Series>) -> Self {
        let cost = |series: &Series| median(&series.samples, |sample| sample.cpu_micros);
        let portico = series.iter().find(|series| series.proxy == Proxy::Portico).map(cost);
        let results = series.into_iter().map(|series| {
            let samples = &series.samples;
            Measured {
                proxy: series.proxy,
                median: Sample {
                    cpu_micros: cost(&series),
                    rate: median(samples, |sample| sample.rate),
                    p50_micros: median(samples, |sample| sample.p50_micros),
                    p99_micros: median(samples, |sample| sample.p99_micros),
                    waited: median(samples, |sample| sample.waited),
                },
                cost_to_portico: portico.map(|portico| cost(&series) / portico),
                rounds: series.samples,
            }
        });
        Self { scenario, results: results.collect() }
    }

    /// A cell of the table; a dash for a proxy that cannot do this scenario.
    fn cell(&self, proxy: Proxy, show: impl Fn(&Measured) -> String) -> String {
        self.results.iter().find(|found| found.proxy == proxy).map_or_else(|| "-".to_owned(), show)
    }
}

/// The median, of an even number of values the mean of the two in the middle; 0 of none.
fn median(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

fn header(text: &mut String, titles: Vec<String>) {
    let rule = vec!["---:".to_owned(); titles.len()];
    row(text, "", titles.into_iter());
    row(text, "---", rule.into_iter());
}

fn row(text: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    text.push_str("| ");
    text.push_str(first);
    for cell in cells {
        text.push_str(" | ");
        text.push_str(&cell);
    }
    text.push_str(" |\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(proxy: Proxy, costs: &[f64]) -> Series {
        let sample = |cpu_micros| Sample {
            cpu_micros,
            rate: 1000.0,
            p50_micros: 10.0,
            p99_micros: 20.0,
            waited: cpu_micros / 100.0,
        };
        Series { proxy, samples: costs.iter().copied().map(sample).collect() }
    }

    fn report() -> Report {
        Report {
            finished: 0,
            machine: Machine { processor: "P".to_owned(), kernel: "K".to_owned() },
            proxies: Proxy::ALL.map(|proxy| Version { proxy, version: "V".to_owned() }).into(),
            rounds: 3,
            seconds_per_round: 1.0,
            scenarios: vec![Compared::new(
                Scenario::Tcp,
                vec![series(Proxy::Portico, &[9.0, 10.0, 90.0]), series(Proxy::Haproxy, &[30.0, 14.0, 16.0, 10.0])],
            )],
        }
    }

    #[test]
    fn the_table_shows_medians_and_ratios_and_a_dash_for_who_did_not_run() {
        let text = report().markdown();
        assert!(text.contains("|  | Portico | HAProxy | nginx | HAProxy / Portico | nginx / Portico |\n"), "{text}");
        assert!(text.contains("| TCP ping-pong, 64 B | 10.0 | 15.0 | - | 1.50 | - |\n"), "{text}");
    }

    #[test]
    fn a_busy_machine_is_named() {
        let mut report = report();
        report.scenarios[0] = Compared::new(Scenario::Tcp, vec![series(Proxy::Nginx, &[24.0])]);
        assert_eq!(report.warning(), None);
        report.scenarios.push(Compared::new(Scenario::Udp, vec![series(Proxy::Nginx, &[26.0])]));
        let warning = report.warning().unwrap();
        assert!(warning.contains("nginx waited for its processor for 26 % of the time it ran in UDP"), "{warning}");
    }
}
