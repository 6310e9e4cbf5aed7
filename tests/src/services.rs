//! Services with what is behind them, as texts of manifests. Addresses are written with `127.N.`; each text ends with the
//! separator of documents.

use std::fmt::Write as _;

/// A ready Pod at 127.N.IP with the label `app: APP` and port 8080, which standalone runs as a sample backend.
pub fn echo_pod(name: &str, app: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, labels: {{app: {app}}}, annotations: {{portico.dev/echo: \"true\"}}}}\n\
         spec: {{nodeName: node-a, containers: [{{name: echo, ports: [{{containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIP: 127.N.{ip}, conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
    )
}

/// A NodePort Service for the Pods with the label `app: NAME`. `annotations` are the elements of a flow mapping, such as
/// `portico.dev/balancing: random`, and `ports` those of a flow sequence, such as
/// `{port: 80, targetPort: 8080, nodePort: 30080, appProtocol: http}`.
pub fn service(name: &str, annotations: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
         spec: {{type: NodePort, selector: {{app: {name}}}, ports: [{ports}]}}\n---\n"
    )
}

/// As [`service`], without a selector, with one port, and with endpoints that are not Pods: what comes after `127.N.`,
/// and the port.
pub fn manual(name: &str, annotations: &str, port: &str, endpoints: &[(&str, u16)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
         spec: {{type: NodePort, ports: [{port}]}}\n---\n"
    );
    for (at, (ip, port)) in endpoints.iter().enumerate() {
        write!(
            text,
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: {name}-{at}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             endpoints: [{{addresses: [127.N.{ip}], conditions: {{ready: true}}}}]\nports: [{{port: {port}}}]\n---\n"
        )
        .expect("a string can be written to");
    }
    text
}
