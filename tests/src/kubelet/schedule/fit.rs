//! Which Node a Pod fits best: a pure choice from the Nodes and the Pods that there are.
//!
//! Honoured are what excludes a Node (cordon, taints, node selector, required affinities, spread constraints that forbid,
//! host ports) and one preference: few Pods of the same owner, then few Pods. Resources are not counted.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Taint, Toleration,
        TopologySpreadConstraint,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

/// Why a Pod fits no Node: how often each reason was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    nodes: usize,
    reasons: BTreeMap<&'static str, usize>,
}

/// The name of the Node where a Pod fits best.
///
/// `placed` are the Pods that have a Node and have not ended.
///
/// # Errors
/// With the reasons, when it fits none.
pub fn choose(pod: &Pod, nodes: &[Node], placed: &[&Pod]) -> Result<String, Unfit> {
    let mut reasons = BTreeMap::new();
    let mut fitting = Vec::new();
    for node in nodes {
        match misfit(pod, node, nodes, placed) {
            Some(reason) => *reasons.entry(reason).or_default() += 1,
            None => fitting.push(node),
        }
    }
    let cost = |node: &&Node| {
        let here = || placed.iter().filter(|other| on(other, node));
        let siblings = here().filter(|other| siblings(pod, other)).count();
        (siblings, here().count(), node.name_any())
    };
    let best = fitting.into_iter().min_by_key(cost);
    best.map(|node| node.name_any()).ok_or(Unfit { nodes: nodes.len(), reasons })
}

/// Why a Pod may not go to a Node, in the words of the real scheduler.
fn misfit(pod: &Pod, node: &Node, nodes: &[Node], placed: &[&Pod]) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if !selected(spec, node) {
        return Some("node(s) didn't match Pod's node affinity/selector");
    }
    let node_spec = node.spec.clone().unwrap_or_default();
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    if node_spec.unschedulable == Some(true) && !tolerated(&cordon, tolerations) {
        return Some("node(s) were unschedulable");
    }
    if !node_spec.taints.iter().flatten().all(|taint| tolerated(taint, tolerations)) {
        return Some("node(s) had untolerated taint(s)");
    }
    let taken: BTreeSet<_> =
        placed.iter().filter(|other| on(other, node)).flat_map(|other| host_ports(other)).collect();
    if host_ports(pod).iter().any(|port| taken.contains(port)) {
        return Some("node(s) didn't have free ports for the requested pod ports");
    }
    if !agreeable(pod, node, nodes, placed) {
        return Some("node(s) didn't match pod affinity/anti-affinity rules");
    }
    let mut constraints = spec.topology_spread_constraints.iter().flatten();
    if !constraints.all(|constraint| spread(pod, constraint, node, nodes, placed)) {
        return Some("node(s) didn't match pod topology spread constraints");
    }
    None
}

fn selected(spec: &PodSpec, node: &Node) -> bool {
    let wanted = spec.node_selector.iter().flatten();
    let labels = node.labels();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    wanted.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// A term without any requirement matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let name = node.name_any();
    let empty = labels.clone().next().is_none() && fields.clone().next().is_none();
    !empty
        && labels.into_iter().all(|requirement| meets(requirement, node.labels().get(&requirement.key)))
        && fields.into_iter().all(|requirement| requirement.key == "metadata.name" && meets(requirement, Some(&name)))
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = values.first().and_then(number);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value > bound),
        "Lt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    taint.effect == "PreferNoSchedule" || tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let value = || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && match toleration.operator.as_deref() {
            Some("Exists") => key.is_empty() || key == taint.key,
            None | Some("Equal" | "") => key == taint.key && value(),
            Some(_) => false,
        }
}

/// Ports that a Pod takes on its node, with their protocols.
fn host_ports(pod: &Pod) -> BTreeSet<(i32, String)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let taken = |(port, protocol): (i32, Option<&String>)| (port, protocol.map_or("TCP", String::as_str).to_owned());
    ports.filter_map(|port| port.host_port.map(|number| taken((number, port.protocol.as_ref())))).collect()
}

/// Whether the required affinities and anti-affinities between Pods allow it, those of the Pods that are there included.
fn agreeable(pod: &Pod, node: &Node, nodes: &[Node], placed: &[&Pod]) -> bool {
    let together = |term: &PodAffinityTerm, of: &Pod, with: &Pod| {
        let namespaces = term.namespaces.clone().unwrap_or_default();
        let namespace = with.namespace().unwrap_or_default();
        let own = namespaces.is_empty() && with.namespace() == of.namespace();
        (own || namespaces.contains(&namespace)) && chosen(term.label_selector.as_ref(), with)
    };
    let near = |other: &Pod, key: &str| {
        let other = nodes.iter().find(|there| on(other, there));
        let here = node.labels().get(key);
        here.is_some() && other.and_then(|there| there.labels().get(key)) == here
    };
    let wants = affinity_terms(pod).into_iter().all(|term| {
        let first_of_its_kind = || together(&term, pod, pod) && !placed.iter().any(|other| together(&term, pod, other));
        placed.iter().any(|other| together(&term, pod, other) && near(other, &term.topology_key)) || first_of_its_kind()
    });
    let refuses = |of: &Pod, with: &Pod, place: &Pod| {
        anti_affinity_terms(of).iter().any(|term| together(term, of, with) && near(place, &term.topology_key))
    };
    wants && !placed.iter().any(|other| refuses(pod, other, other) || refuses(other, pod, other))
}

fn affinity_terms(pod: &Pod) -> Vec<PodAffinityTerm> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.pod_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.clone())
        .unwrap_or_default()
}

fn anti_affinity_terms(pod: &Pod) -> Vec<PodAffinityTerm> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.pod_anti_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.clone())
        .unwrap_or_default()
}

/// Whether a node's domain would hold at most `maxSkew` Pods more than the emptiest domain that the Pod may go to.
fn spread(pod: &Pod, constraint: &TopologySpreadConstraint, node: &Node, nodes: &[Node], placed: &[&Pod]) -> bool {
    if constraint.when_unsatisfiable != "DoNotSchedule" {
        return true;
    }
    let key = &constraint.topology_key;
    let Some(domain) = node.labels().get(key) else { return false };
    let alike = |other: &Pod| {
        let keys = constraint.match_label_keys.iter().flatten();
        other.namespace() == pod.namespace()
            && other.metadata.deletion_timestamp.is_none()
            && chosen(constraint.label_selector.as_ref(), other)
            && keys.into_iter().all(|key| pod.labels().get(key) == other.labels().get(key))
    };
    let possible = nodes.iter().filter(|node| pod.spec.as_ref().is_some_and(|spec| selected(spec, node)));
    let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
    for candidate in possible {
        let Some(domain) = candidate.labels().get(key) else { continue };
        let here = placed.iter().filter(|other| on(other, candidate) && alike(other)).count();
        *counts.entry(domain).or_default() += i32::try_from(here).unwrap_or(i32::MAX);
    }
    let emptiest = counts.values().min().copied().unwrap_or_default();
    let itself = i32::from(alike(pod));
    counts.get(domain).copied().unwrap_or_default() + itself - emptiest <= constraint.max_skew
}

/// Whether a selector chooses a Pod. No selector chooses nothing, an empty one everything.
fn chosen(selector: Option<&LabelSelector>, pod: &Pod) -> bool {
    let selector = selector.and_then(|selector| Selector::try_from(selector.clone()).ok());
    selector.is_some_and(|selector| selector.matches(pod.labels()))
}

fn on(pod: &Pod, node: &Node) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == node.metadata.name.as_ref()
}

fn siblings(one: &Pod, other: &Pod) -> bool {
    let owner =
        |pod: &Pod| pod.owner_references().iter().find(|owner| owner.controller == Some(true)).map(|o| o.uid.clone());
    owner(one).is_some() && owner(one) == owner(other)
}

// === impl Unfit ===

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0/{} nodes are available", self.nodes)?;
        for (index, (reason, count)) in self.reasons.iter().enumerate() {
            write!(f, "{} {count} {reason}", if index == 0 { ":" } else { "," })?;
        }
        write!(f, ".")
    }
}

#[cfg(test)]
mod tests;
