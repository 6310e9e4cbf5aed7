//! One EndpointSlice object to one Slice resource: when the cluster changed it (S20).

use std::time::SystemTime;

use api::{
    delta::version::Version,
    resource::{name::NamespacedName, slice::Slice},
};
use k8s_openapi::{api::discovery::v1::EndpointSlice, jiff::Timestamp};

use crate::watch::object::TRIGGER_TIME;

/// The resource of a slice. A trigger time that cannot be parsed counts as none.
pub fn derive(service: &NamespacedName, name: &str, object: &EndpointSlice) -> Slice {
    let annotations = object.metadata.annotations.as_ref();
    let time = annotations.and_then(|annotations| annotations.get(TRIGGER_TIME)?.parse::<Timestamp>().ok());
    let content = (&object.address_type, &object.ports, &object.endpoints);
    Slice {
        service: service.clone(),
        name: name.to_owned(),
        // It always can be written: keys are strings, and there is no IO.
        content: Version::of(&serde_json::to_vec(&content).unwrap_or_default()),
        triggered: time.map(SystemTime::from),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Value, json};

    use super::*;

    fn slice(annotations: Value, address: &str) -> Slice {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "shop", "annotations": annotations},
            "endpoints": [{"addresses": [address]}], "ports": [{"name": "http", "port": 80}],
        });
        let object = serde_json::from_value(object).expect("a slice");
        derive(&NamespacedName::new("shop", "web"), "web-1", &object)
    }

    #[test]
    fn only_endpoints_and_ports_make_another_content() {
        let at = |text: &str| slice(json!({TRIGGER_TIME: text}), "10.0.0.1");
        let (one, other) = (at("2018-01-01T00:00:01.5Z"), at("2018-01-01T00:00:02Z"));
        assert_eq!(one.triggered, Some(UNIX_EPOCH + Duration::from_millis(1_514_764_801_500)));
        assert_eq!(one.content, other.content);
        assert_ne!(one.content, slice(json!({}), "10.0.0.2").content);
    }

    #[test]
    fn a_time_that_cannot_be_parsed_is_none() {
        assert_eq!(slice(json!({TRIGGER_TIME: "yesterday"}), "10.0.0.1").triggered, None);
        assert_eq!(slice(json!({}), "10.0.0.1").triggered, None);
    }
}
