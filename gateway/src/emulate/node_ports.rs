//! Node ports: one number per Service port on every node, TCP and UDP each with a space of their own (S9.1).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Service, ServicePort};

use super::{Rules, Services, report, seed};
use crate::{
    ipam::allocate::{Claim, Refusal, allocate},
    problem::ByObject,
    watch::object::ObjectKey,
};

/// What a node port is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// The port of this name and transport.
    Port(String),
    /// Health checks of external load balancers (S12.1).
    HealthCheck,
}

type Owner = (ObjectKey, Use);

/// Node ports that were given away without being asked for, by Service port and transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    ports: BTreeMap<(Owner, u8), u16>,
}

/// Gives Services of type NodePort and LoadBalancer their node ports and, where the external policy is Local, a
/// health-check port. A number that is asked for but not to be had is left out, because people wrote it down elsewhere:
/// another one would not help them.
pub fn assign(rules: &Rules, services: &mut Services, held: &mut Held, problems: &mut ByObject) {
    let order = services.oldest_first();
    let mut ports = BTreeMap::new();
    for transport in 0..=2 {
        let claims: Vec<_> = order
            .iter()
            .filter_map(|key| Some((key, services.get(key)?)))
            .flat_map(|(key, service)| claims(key, service, transport, held))
            .collect();
        let allocation = allocate(&rules.node_ports, &claims);
        for ((key, used), refusal) in &allocation.refused {
            let field = match used {
                Use::Port(name) if name.is_empty() => "nodePort".to_owned(),
                Use::Port(name) => format!("nodePort of port {name:?}"),
                Use::HealthCheck => "healthCheckNodePort".to_owned(),
            };
            let (first, last) = rules.node_ports.ends();
            let message = match refusal {
                Refusal::Outside(port) => format!("{field} {port} is not within --node-port-range {first}-{last}"),
                Refusal::Taken(port, (other, _)) if other == key => {
                    format!("{field} {port} is used by another port of it")
                }
                Refusal::Taken(port, (other, _)) => format!("{field} {port} belongs to {other}, which is older"),
                Refusal::Exhausted => format!("no {field}: --node-port-range {first}-{last} has none free"),
            };
            report(problems, key, "NODE_PORT_CONFLICT", message);
        }
        let asked: BTreeSet<_> =
            claims.iter().filter(|claim| claim.asked.is_some()).map(|claim| &claim.owner).collect();
        held.ports.retain(|(_, of), _| *of != transport);
        for (owner, port) in allocation.granted {
            if !asked.contains(&owner) {
                held.ports.insert((owner.clone(), transport), port);
            }
            ports.insert((owner, transport), port);
        }
    }
    for key in order {
        let Some(spec) = services.get_mut(&key).and_then(|service| service.spec.as_mut()) else { continue };
        let granted = |used: Use, transport: u8| ports.get(&((key.clone(), used), transport)).copied().map(i32::from);
        for port in spec.ports.iter_mut().flatten() {
            port.node_port = granted(Use::Port(port.name.clone().unwrap_or_default()), transport(port));
        }
        spec.health_check_node_port = granted(Use::HealthCheck, 0);
    }
}

fn claims(key: &ObjectKey, service: &Service, transport_wanted: u8, held: &Held) -> Vec<Claim<Owner, u16>> {
    let Some(spec) = &service.spec else { return vec![] };
    let kind = spec.type_.as_deref().unwrap_or_default();
    if kind != "NodePort" && kind != "LoadBalancer" {
        return vec![];
    }
    let automatic = kind == "NodePort" || spec.allocate_load_balancer_node_ports != Some(false);
    let number = |value: Option<i32>| value.filter(|port| *port != 0).map(|port| u16::try_from(port).unwrap_or(0));
    let claim = |used: Use, asked: Option<u16>, seed_of: &str| {
        let owner = (key.clone(), used);
        let held = held.ports.get(&(owner.clone(), transport_wanted)).copied();
        Claim {
            owner,
            asked,
            held,
            parts: BTreeSet::new(),
            seed: seed(&["node-port", &key.namespace, &key.name, seed_of]),
        }
    };
    let ports = spec.ports.iter().flatten().filter(|port| transport(port) == transport_wanted);
    let mut claims: Vec<_> = ports
        .filter(|port| automatic || number(port.node_port).is_some())
        // Seeded by the port's number, so that TCP and UDP of one number mostly get one node port.
        .map(|port| {
            claim(Use::Port(port.name.clone().unwrap_or_default()), number(port.node_port), &port.port.to_string())
        })
        .collect();
    let health_check = kind == "LoadBalancer" && spec.external_traffic_policy.as_deref() == Some("Local");
    if health_check && transport_wanted == 0 {
        claims.push(claim(Use::HealthCheck, number(spec.health_check_node_port), "health-check"));
    }
    claims
}

/// A number for the protocol of a port: TCP 0, UDP 1, SCTP 2.
pub(super) fn transport(port: &ServicePort) -> u8 {
    match port.protocol.as_deref() {
        Some("UDP") => 1,
        Some("SCTP") => 2,
        _ => 0,
    }
}
