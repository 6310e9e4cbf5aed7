//! What only several connections show: that a client keeps its endpoint, and that others are spread.

use std::{collections::BTreeSet, time::Duration};

use tests::probe::{Seen, Transport};

use crate::{
    lab::Lab,
    matrix::{Client, Destination, ENTRY, Family, Probe, Service},
    report::Row,
};

const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever picks one of two endpoints at random misses one of them in this many connections once in a million times.
const CONNECTIONS: usize = 21;
const CLIENTS: [Client; 4] = [Client::Pod(ENTRY), Client::Echo(ENTRY), Client::Node(ENTRY), Client::Outside];
/// Addresses of one port of a Service, which share the memory of clients.
const SHARED: [Destination; 4] =
    [Destination::ClusterIp, Destination::NodePort, Destination::ExternalIp, Destination::LoadBalancerIp];

/// The endpoints that answer each client, transport and family over several connections to two endpoints.
pub async fn observe(lab: &Lab, services: &[Service]) -> Vec<Row> {
    let named = |name| services.iter().find(|service| service.name == name).expect("the matrix has this Service");
    let (sticky, spread) = (named("sticky"), named("cc-both"));
    let mut rows = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        for family in [Family::V4, Family::V6] {
            for client in CLIENTS {
                let probe = |service, destination| Probe { service, client, destination, transport, family };
                let kept = SHARED.iter().cycle().take(CONNECTIONS).map(|destination| probe(sticky, *destination));
                rows.push(row(lab, kept, "S8.2 session affinity", 1).await);
                let spread = std::iter::repeat_n(probe(spread, Destination::ClusterIp), CONNECTIONS);
                rows.push(row(lab, spread, "S4.7 at random", 2).await);
            }
        }
    }
    rows
}

/// Asks one after the other. `wanted` is how many endpoints have to answer.
async fn row(lab: &Lab, probes: impl Iterator<Item = Probe<'_>>, rule: &'static str, wanted: usize) -> Row {
    let mut pods = BTreeSet::new();
    let mut question = String::new();
    let mut answered = true;
    for probe in probes {
        question = format!("{CONNECTIONS} times {probe}");
        match lab.ask(&probe, PATIENCE).await {
            Seen::Answer { pod, .. } => pods.insert(pod),
            other => {
                pods.insert(format!("{other:?}"));
                answered = false;
                break;
            }
        };
    }
    Row {
        question,
        rule,
        expected: format!("{wanted} endpoints"),
        seen: pods.iter().cloned().collect::<Vec<_>>().join(", "),
        agrees: answered && pods.len() == wanted,
    }
}
