//! kube-proxy and Portico beside each other: the same questions about the same Services on the same cluster, answered
//! first by the one and then by the other, and both compared with what the rules say. These tests need root; `scripts/test
//! cluster` runs them.

/// What load balancers are told.
mod health;
/// A cluster with the Services that are asked about.
mod lab;
/// The questions.
mod matrix;
/// What was seen beside what was expected.
mod report;
/// What the rules say.
mod rules;
/// What only several connections show.
mod sequences;

use std::time::Instant;

use tests::sandbox::{portico, shared};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::{lab::Lab, matrix::Service, report::Row, rules::Proxy};

/// A cluster that kube-proxy has served, and that Portico serves now.
struct Compared {
    services: Vec<Service>,
    lab: Lab,
    /// What came of each question with kube-proxy.
    kube: Vec<Row>,
}

/// Anybody who may write Services could take over any address, so Portico serves those external IPs that it is told to.
const EXTERNAL_IPS: &str = "PORTICO_EXTERNAL_IPS=198.51.100.0/24,2001:db8:e::/64";

static COMPARED: OnceCell<Compared> = OnceCell::const_new();
static TURN: Mutex<()> = Mutex::const_new(());

/// The cluster, to one test at a time.
async fn compared() -> (&'static Compared, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    (COMPARED.get_or_init(replace_kube_proxy).await, turn)
}

/// Asks kube-proxy everything, and then puts Portico into its place as the installation guide says.
async fn replace_kube_proxy() -> Compared {
    let services = matrix::services();
    let sandbox = shared::up((1..=shared::NODES).collect()).await.expect("a sandbox");
    let lab = Lab::prepare(sandbox, &services).await.expect("the cluster takes the Services");
    lab.served().await.expect("kube-proxy serves");
    let kube = ask_everything(&lab, &services, Proxy::Kube).await;
    for node in 1..=shared::NODES {
        lab.sandbox.stop_kube_proxy(node).expect("kube-proxy goes");
    }
    portico::deploy(&lab.sandbox, &[EXTERNAL_IPS]).await;
    lab.served().await.expect("Portico serves");
    Compared { services, lab, kube }
}

async fn ask_everything(lab: &Lab, services: &[Service], proxy: Proxy) -> Vec<Row> {
    let began = Instant::now();
    let mut rows = report::observe(lab, &matrix::probes(services), proxy).await;
    rows.extend(sequences::observe(lab, services).await);
    rows.extend(health::observe(lab, services).await);
    println!("{proxy:?}: {} questions in {:?}\n{}", rows.len(), began.elapsed(), report::by_rule(&rows));
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_proxy_follows_the_rules() {
    let (compared, _turn) = compared().await;
    let deviations = report::deviations(&compared.kube);
    assert!(deviations.is_empty(), "{} deviations:\n{}", deviations.len(), deviations.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn portico_does_as_kube_proxy_does() {
    let (Compared { services, lab, kube }, _turn) = compared().await;
    let portico = ask_everything(lab, services, Proxy::Portico).await;
    let differences = report::differences(kube, &portico);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
