//! The answer of a health-check node port (S12).

use serde_json::json;

use crate::table::{Family, HealthCheck};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status: 200 or 503.
    pub status: u16,
    /// `X-Load-Balancing-Endpoint-Weight`.
    pub weight: usize,
    /// JSON.
    pub body: String,
}

/// What a load balancer is told (S12.2 to S12.5): come, if there is an endpoint that takes connections and the node
/// keeps up. It is told of the family that it asks by. Draining endpoints are not counted, so the load balancer leaves while they still serve.
pub fn answer(check: &HealthCheck, family: Family, proxy_healthy: bool) -> Answer {
    let local_endpoints = check.local_endpoints[family as usize];
    let body = json!({
        "service": {"namespace": *check.service.namespace, "name": *check.service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    Answer {
        status: if local_endpoints > 0 && proxy_healthy { 200 } else { 503 },
        weight: local_endpoints,
        body: body.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use api::resource::name::NamespacedName;

    use super::*;

    #[test]
    fn only_ready_endpoints_and_a_healthy_node_attract_traffic() {
        let check = |local_endpoints, healthy| {
            let service = NamespacedName::new("ns", "svc");
            let port = NonZeroU16::new(31_000).expect("not zero");
            let check = HealthCheck { service, port, local_endpoints: [local_endpoints, 7] };
            assert_eq!(answer(&check, Family::Ipv6, healthy).weight, 7, "each family is told of its own");
            answer(&check, Family::Ipv4, healthy)
        };
        let statuses = [check(2, true), check(0, true), check(2, false)].map(|answer| answer.status);
        assert_eq!(statuses, [200, 503, 503]);
        let answer = check(2, false);
        assert_eq!(answer.weight, 2, "the count is told as it is");
        let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        let expected = json!({
            "service": {"namespace": "ns", "name": "svc"}, "localEndpoints": 2, "serviceProxyHealthy": false,
        });
        assert_eq!(body, expected);
    }
}
