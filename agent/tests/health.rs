//! The ports on which load balancers and probes ask, over real sockets, and kube-proxy's metrics as they are scraped.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, SystemTime},
};

use agent::{
    apply::{
        control::Progress,
        programming::{Changes, Programming, Triggers},
    },
    health::{
        metrics::{self, Metrics},
        serve::{self, PortFault, Probes},
    },
    table::{HealthCheck, Table},
};
use api::resource::name::NamespacedName;
use opentelemetry::metrics::MeterProvider as _;
use runtime::{
    drain,
    telemetry::{Component, Telemetry, settings::Settings},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

struct Agent {
    component: Component,
    programming: Programming,
    metrics: Metrics,
    progress: watch::Sender<Progress>,
    trigger: drain::Trigger,
    healthz: SocketAddr,
    health_ports: watch::Receiver<Vec<PortFault>>,
    _serving: JoinSet<()>,
}

impl Agent {
    async fn start() -> Self {
        let settings = Settings::disabled();
        let component = Telemetry::new(settings).and_then(|made| made.component("portico-agent", vec![]));
        let component = component.expect("nothing is exported");
        let meter = component.meter_provider.meter("portico.programming");
        let (programming, metrics) = (Programming::default(), Metrics::new(&meter));
        let (progress, seen) = watch::channel(Progress::default());
        metrics::observe(&meter, &programming, &seen);
        let (trigger, drain) = drain::channel();
        let probes = Probes { programming: programming.clone(), progress: seen, metrics: metrics.clone(), drain };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let healthz = listener.local_addr().expect("it is bound");
        let mut serving = JoinSet::new();
        serving.spawn(serve::proxy(listener, probes.clone()));
        let (faults, health_ports) = watch::channel(Vec::new());
        serving.spawn(serve::services(probes, faults));
        Self { component, programming, metrics, progress, trigger, healthz, health_ports, _serving: serving }
    }

    /// A table with these health-check node ports, at 127.0.0.1.
    fn serve(&self, checks: &[(&str, NonZeroU16, usize)]) {
        let check = |(name, port, local_endpoints): &(&str, NonZeroU16, usize)| {
            let service = NamespacedName::new("shop", *name);
            HealthCheck { service, port: *port, local_endpoints: [*local_endpoints, 0] }
        };
        let table = Table {
            health_checks: checks.iter().map(check).collect(),
            node_port_addresses: [IpAddr::V4(Ipv4Addr::LOCALHOST)].into(),
            ..Table::default()
        };
        self.progress.send_modify(|progress| progress.table = Arc::new(table));
        self.programming.updated();
    }

    fn scrape(&self) -> String {
        let families = self.component.registry.gather();
        prometheus::TextEncoder::new().encode_to_string(&families).expect("text")
    }
}

/// Status, head and body of an answer; `None` if nobody listens.
async fn get(address: SocketAddr, path: &str) -> Option<(u16, String, Value)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, head.to_ascii_lowercase(), serde_json::from_str(body).expect("JSON")))
}

/// Asks until the answer is the wanted one: what a table changes is open or closed a moment later.
async fn eventually(address: SocketAddr, wanted: Option<u16>) -> Option<(u16, String, Value)> {
    let asked = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let answer = get(address, "/").await;
            if answer.as_ref().map(|(status, ..)| *status) == wanted {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("{address} never answers {wanted:?}"))
}

async fn free_port() -> NonZeroU16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    NonZeroU16::new(listener.local_addr().expect("it is bound").port()).expect("not zero")
}

#[tokio::test]
async fn a_health_check_node_port_lives_as_long_as_its_service() {
    let agent = Agent::start().await;
    let port = free_port().await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.get()));
    agent.serve(&[("web", port, 0)]);
    eventually(address, Some(503)).await;
    agent.serve(&[("web", port, 2)]);
    let (_, head, body) = eventually(address, Some(200)).await.expect("an answer");
    for header in
        ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"]
    {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    let expected = json!({
        "service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
    });
    assert_eq!(body, expected);
    // The port may go to another Service.
    agent.serve(&[("api", port, 0)]);
    let (_, _, body) = eventually(address, Some(503)).await.expect("an answer");
    assert_eq!(body["service"]["name"], "api");
    agent.serve(&[]);
    eventually(address, None).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_opened_once_it_is_free() {
    let mut agent = Agent::start().await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let other = free_port().await;
    let port = NonZeroU16::new(address.port()).expect("not zero");
    agent.serve(&[("web", port, 1), ("api", other, 1)]);
    eventually((Ipv4Addr::LOCALHOST, other.get()).into(), Some(200)).await;
    let told = agent.health_ports.wait_for(|faults| !faults.is_empty()).await.expect("it runs").clone();
    let told: Vec<_> = told.iter().map(|fault| (fault.service.to_string(), fault.address)).collect();
    assert_eq!(told, [("shop/web".to_owned(), address)]);
    drop(taken);
    eventually(address, Some(200)).await;
    agent.health_ports.wait_for(Vec::is_empty).await.expect("it runs");
}

#[tokio::test]
async fn a_draining_agent_fails_health_first_and_lives() {
    let agent = Agent::start().await;
    let port = free_port().await;
    let check = SocketAddr::from((Ipv4Addr::LOCALHOST, port.get()));
    agent.serve(&[("web", port, 1)]);
    eventually(check, Some(200)).await;
    let status = async |path| get(agent.healthz, path).await.map(|(status, ..)| status);
    assert_eq!((status("/healthz").await, status("/livez").await), (Some(200), Some(200)));
    agent.trigger.start();
    assert_eq!((status("/healthz").await, status("/livez").await), (Some(503), Some(200)));
    let (_, _, body) = eventually(check, Some(503)).await.expect("an answer");
    assert_eq!(body["serviceProxyHealthy"], false);
    assert_eq!(status("/other").await, Some(404));
    let text = agent.scrape();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
    }
}

#[tokio::test]
async fn metrics_have_the_names_of_kube_proxy() {
    let agent = Agent::start().await;
    agent.programming.queued();
    agent.programming.received(Changes { services: 1, endpoints: 3 });
    let now = SystemTime::now();
    let triggers = Triggers::from([(NamespacedName::new("shop", "web"), vec![now - Duration::from_millis(1_500)])]);
    agent.metrics.programmed(Duration::from_millis(3), false, &triggers, now);
    let text = agent.scrape();
    let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
    for family in ["IPv4", "IPv6"] {
        has(&format!("kubeproxy_network_programming_duration_seconds_bucket{{ip_family=\"{family}\",le=\"1\"}} 0"));
        has(&format!("kubeproxy_network_programming_duration_seconds_bucket{{ip_family=\"{family}\",le=\"2\"}} 1"));
        has(&format!("kubeproxy_sync_proxy_rules_duration_seconds_bucket{{ip_family=\"{family}\",le=\"0.004\"}} 1"));
        for policy in ["internal", "external"] {
            has(&format!(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"{family}\",traffic_policy=\"{policy}\"}} 0"
            ));
        }
        let queued = format!("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"{family}\"}} ");
        assert!(text.lines().any(|line| line.starts_with(&queued)), "{queued}\nnot in\n{text}");
    }
    has("kubeproxy_sync_proxy_rules_service_changes_total 1");
    has("kubeproxy_sync_proxy_rules_endpoint_changes_total 3");
    has("kubeproxy_sync_proxy_rules_endpoint_changes_pending 3");
    agent.programming.updated();
    let text = agent.scrape();
    assert!(text.lines().any(|line| line == "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0"), "{text}");
}
