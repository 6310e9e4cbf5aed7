//! What agents cannot serve, as problems of the Services it belongs to (S9.6, S12.7).

use std::{collections::BTreeMap, sync::Arc};

use api::resource::name::NamespacedName;

use crate::{
    health::report::Report,
    problem::{ByObject, Problem},
    watch::object::{Kind, ObjectKey},
};

/// Faults of one agent that are told. The bound is there for those who send them at random.
const MAX_FAULTS: usize = 100;

/// Reasons that are told as agents give them.
const REASONS: [&str; 5] =
    ["PORT_IN_USE", "ADDRESS_NOT_LOCAL", "PERMISSION_DENIED", "LISTEN_FAILED", "FAILED_TO_START_SERVICE_HEALTHCHECK"];

/// The problems that agents report at the moment, each of one node. What an agent said whose stream has ended is not
/// told: its node may be gone.
pub fn problems(reports: &BTreeMap<Arc<str>, Report>) -> ByObject {
    let mut problems = ByObject::new();
    for (node, report) in reports.iter().filter(|(_, report)| report.reporting) {
        for fault in report.status.faults.iter().take(MAX_FAULTS) {
            let Ok(service) = fault.service.parse::<NamespacedName>() else { continue };
            let reason = REASONS.into_iter().find(|known| *known == fault.reason).unwrap_or("NOT_SERVED");
            let message = format!("{node} does not serve port {}: {}", fault.node_port, fault.message);
            let object = ObjectKey::new(Kind::Service, service.namespace, service.name);
            problems.entry(object).or_default().push(Problem::new(reason, message));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use api::proto::node::{NodeServingState::Serving, NodeStatus, ServiceFault};

    use super::*;
    use crate::health::{
        fixture::{TERM, fault, request, status},
        moment::Moment,
        report::Reports,
    };

    #[test]
    fn faults_of_agents_that_report_are_problems_of_their_services() {
        let reports = Arc::new(Reports::new(TERM));
        let open = |node: &str, faults: Vec<ServiceFault>| {
            let status = NodeStatus { faults, ..status(node, "a", Serving) };
            reports.open(request(status), Moment::now()).expect("it is right")
        };
        let strange = ServiceFault { service: "nobody".to_owned(), ..fault("web", "PORT_IN_USE") };
        let _first = open("n1", vec![fault("web", "PORT_IN_USE"), strange, fault("api", "WHATEVER")]);
        let second = open("n2", vec![fault("web", "PORT_IN_USE")]);
        let told = || {
            let problems = problems(&reports.list());
            let lines = |(object, found): (ObjectKey, Vec<Problem>)| {
                found.into_iter().map(|problem| format!("{object} {problem}")).collect::<Vec<_>>()
            };
            problems.into_iter().flat_map(lines).collect::<Vec<_>>()
        };
        let port = fault("web", "").node_port;
        let message = fault("web", "").message;
        let of = |service: &str, reason: &str, node: &str| {
            format!("Service default/{service} {reason}: {node} does not serve port {port}: {message}")
        };
        let of_n1 = [of("api", "NOT_SERVED", "n1"), of("web", "PORT_IN_USE", "n1")];
        assert_eq!(told(), [of_n1[0].clone(), of_n1[1].clone(), of("web", "PORT_IN_USE", "n2")]);
        drop(second);
        assert_eq!(told(), of_n1);
    }
}
