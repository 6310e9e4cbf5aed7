//! What becomes of connections to Services in every state, from every kind of client to every kind of address, worked out
//! from the rules and compared with the real kube-proxy on a real cluster. These tests need root; `scripts/test cluster`
//! runs them.

/// What load balancers are told.
mod health;
/// A cluster with the Services that are asked about.
mod lab;
/// The questions.
mod matrix;
/// One question on the wire.
mod probe;
/// What was seen beside what was expected.
mod report;
/// What the rules say.
mod rules;
/// What only several connections show.
mod sequences;

use std::time::Instant;

use tests::sandbox::shared;

use crate::{lab::Lab, matrix::Service, report::Row, rules::Proxy};

#[tokio::test(flavor = "multi_thread")]
async fn kube_proxy_follows_the_rules() {
    let services = matrix::services();
    let sandbox = shared::up((1..=shared::NODES).collect()).await.expect("a sandbox");
    let lab = Lab::prepare(sandbox, &services).await.expect("the cluster takes the Services");
    lab.served().await.expect("kube-proxy serves");
    let kube = ask_everything(&lab, &services, Proxy::Kube).await;
    lab.down().expect("everything can be removed");
    let deviations = report::deviations(&kube);
    assert!(deviations.is_empty(), "{} deviations:\n{}", deviations.len(), deviations.join("\n"));
}

async fn ask_everything(lab: &Lab, services: &[Service], proxy: Proxy) -> Vec<Row> {
    let began = Instant::now();
    let mut rows = report::observe(lab, &matrix::probes(services), proxy).await;
    rows.extend(sequences::observe(lab, services).await);
    rows.extend(health::observe(lab, services).await);
    println!("{proxy:?}: {} questions in {:?}\n{}", rows.len(), began.elapsed(), report::by_rule(&rows));
    rows
}
