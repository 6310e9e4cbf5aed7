//! One measured round, and the interleaved series of them.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::{
    load::{self, Tally},
    proxy::{Proxy, Running},
    scenario::Scenario,
};

/// How long clients may take to end after a round.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How rounds are run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds of each proxy in each scenario.
    pub rounds: usize,
    /// How long a round counts.
    pub measure: Duration,
    /// How long it runs before it counts: connections are made, caches filled.
    pub warm_up: Duration,
}

/// What one round found.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Processor time of the proxy per request, all threads, in microseconds.
    pub cpu_micros: f64,
    /// Requests per second.
    pub rate: f64,
    /// Median time of a request as the client sees it, in microseconds.
    pub p50_micros: f64,
    /// 99th percentile of the same.
    pub p99_micros: f64,
    /// Time the proxy waited for its processor, as a share of the time it ran: more than a little means that
    /// something else was running there.
    pub waited: f64,
}

/// The rounds of one proxy in one scenario.
#[derive(Clone, Debug)]
pub struct Series {
    /// Which proxy.
    pub proxy: Proxy,
    /// Its rounds, in order.
    pub samples: Vec<Sample>,
}

/// Runs one scenario against every proxy that can do it, round by round.
///
/// # Errors
///
/// Fails with the first wrong answer, lost connection or proxy that ended.
pub async fn series(proxies: &mut [Running], scenario: Scenario, plan: Plan) -> Result<Vec<Series>> {
    let mut proxies: Vec<_> = proxies.iter_mut().filter(|running| running.proxy.supports(scenario)).collect();
    let mut series: Vec<_> =
        proxies.iter().map(|running| Series { proxy: running.proxy, samples: Vec::new() }).collect();
    for number in 0..plan.rounds {
        for (running, series) in proxies.iter_mut().zip(&mut series) {
            let sample = round(running, scenario, plan)
                .await
                .with_context(|| format!("round {number} of {scenario:?} through {}", running.proxy.name()))?;
            series.samples.push(sample);
        }
    }
    Ok(series)
}

async fn round(running: &mut Running, scenario: Scenario, plan: Plan) -> Result<Sample> {
    let tally = Rc::new(Tally::default());
    let mut clients = load::spawn(scenario, running.proxy.address(scenario), &tally);
    let work = async {
        tokio::time::sleep(plan.warm_up).await;
        let (before, begin) = (running.usage()?, Instant::now());
        tally.start();
        tokio::time::sleep(plan.measure).await;
        let (after, elapsed) = (running.usage()?, begin.elapsed());
        Ok::<_, anyhow::Error>((after.since(before), elapsed, tally.stop()))
    };
    // A client that ends while the work goes on has met an error.
    let (used, elapsed, latencies) = tokio::select! {
        measured = work => measured?,
        Some(ended) = clients.join_next() => match ended.context("a client panicked")? {
            Err(error) => return Err(error),
            Ok(()) => bail!("a client ended before it was told to"),
        },
    };
    load::finish(clients, END_LIMIT).await?;
    summarize(used.ran, used.waited, elapsed, latencies)
}

fn summarize(ran: u64, waited: u64, elapsed: Duration, mut latencies: Vec<Duration>) -> Result<Sample> {
    ensure!(!latencies.is_empty(), "no request was answered in {elapsed:?}: run longer rounds");
    ensure!(ran > 0, "the proxy used no processor time: its work is not seen in /proc");
    latencies.sort_unstable();
    let requests = latencies.len() as f64;
    let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    Ok(Sample {
        cpu_micros: ran as f64 / 1e3 / requests,
        rate: requests / elapsed.as_secs_f64(),
        p50_micros: percentile(50),
        p99_micros: percentile(99),
        waited: waited as f64 / ran as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_summed_up_per_request() {
        let latencies = (1..=101).rev().map(Duration::from_micros).collect();
        let sample = summarize(1_010_000, 101_000, Duration::from_secs(2), latencies).unwrap();
        assert_eq!(sample.cpu_micros, 10.0);
        assert_eq!(sample.rate, 50.5);
        assert!((sample.p50_micros - 51.0).abs() < 1e-6);
        assert!((sample.p99_micros - 100.0).abs() < 1e-6);
        assert_eq!(sample.waited, 0.1);
    }

    #[test]
    fn a_round_without_answers_or_work_is_an_error() {
        assert!(summarize(1, 0, Duration::from_secs(1), Vec::new()).is_err());
        assert!(summarize(0, 0, Duration::from_secs(1), vec![Duration::from_micros(1)]).is_err());
    }
}
