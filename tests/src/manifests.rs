//! Texts of manifests, as small as they can be. Addresses are written with `127.N.`.

/// A Node at 127.N.1.LAST.
pub fn node(name: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
         status: {{addresses: [{{type: InternalIP, address: 127.N.1.{last}}}]}}\n---\n"
    )
}

/// A Pod at 127.N.2.LAST with the label `app: web`, which standalone runs as a sample backend.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// Its number: it is called `web-LAST`.
    pub last: u8,
    /// The node it is on.
    pub node: &'static str,
    /// Whether its Ready condition is true.
    pub ready: bool,
    /// Name of its port 8080.
    pub port: &'static str,
}

impl Pod {
    /// A ready Pod whose port is called `http`.
    pub fn new(last: u8, node: &'static str) -> Self {
        Self { last, node, ready: true, port: "http" }
    }

    /// Its name.
    pub fn name(self) -> String {
        format!("web-{}", self.last)
    }

    /// Its document, with the separator after it.
    pub fn text(self) -> String {
        let Self { last, node, ready, port } = self;
        let ready = if ready { "True" } else { "False" };
        format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{name: web-{last}, labels: {{app: web}}, annotations: {{portico.dev/echo: \"true\"}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: echo, ports: [{{name: {port}, containerPort: 8080}}]}}]}}\n\
             status: {{phase: Running, podIP: 127.N.2.{last}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n---\n"
        )
    }
}

/// A NodePort Service for the label `app: web`, over HTTP.
pub fn node_port(name: &str, target_port: &str, node_port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: NodePort\n  selector: {{app: web}}\n  \
         ports: [{{name: web, port: 80, targetPort: {target_port}, nodePort: {node_port}, appProtocol: http}}]\n---\n"
    )
}
