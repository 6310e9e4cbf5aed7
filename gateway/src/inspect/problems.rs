//! Problems on the wire, and those of objects that are not listed.

use api::{
    delta::frame::View as _,
    proto::inspect::{ObjectKind, Problem as Wire},
    resource::Key,
};

use super::scene::{Filter, resource};
use crate::{
    catalog::Catalog,
    problem::Problem,
    snapshot::store::Store,
    watch::object::{Kind, ObjectKey},
};

/// A problem on the wire.
pub fn wire(problem: &Problem) -> Wire {
    Wire { reason: problem.reason.to_owned(), message: problem.message.clone() }
}

/// Problems that no object of the kind has: those of the source, and of objects that the kind is made of but that have
/// no row of their own.
pub fn without_row(catalog: &Catalog, filter: &Filter, store: &Store) -> Vec<Wire> {
    let state = store.read();
    let has_row = |key: &ObjectKey| {
        let name = match &*key.namespace {
            "" => key.name.to_string(),
            namespace => format!("{namespace}/{}", key.name),
        };
        resource(filter.kind).is_some_and(|kind| state.get(&Key::new(kind, name)).is_some())
    };
    let belongs = |key: &ObjectKey| match (filter.kind, key.kind) {
        (ObjectKind::Service, Kind::Service) | (ObjectKind::Node, Kind::Node) => !has_row(key),
        (ObjectKind::Service, Kind::Secret | Kind::Namespace) => true,
        (ObjectKind::Endpoint, Kind::EndpointSlice | Kind::Endpoints | Kind::Pod) => true,
        _ => false,
    };
    let is_covered = |key: &ObjectKey| {
        (filter.namespace.is_empty() || key.namespace.is_empty() || *key.namespace == *filter.namespace)
            && (filter.name.is_empty() || *key.name == *filter.name)
    };
    let others = catalog.problems.iter().filter(|(key, _)| belongs(key) && is_covered(key));
    let named = |(key, problems): (&ObjectKey, &Vec<Problem>)| -> Vec<Wire> {
        let message = |problem: &Problem| Wire {
            reason: problem.reason.to_owned(),
            message: format!("{key}: {}", problem.message),
        };
        problems.iter().map(message).collect()
    };
    catalog.source_problems.iter().map(wire).chain(others.flat_map(named)).collect()
}
