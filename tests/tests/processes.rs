//! Gateway and agents as processes of their own: traffic outlives the gateway, and agents resume without being sent
//! everything again.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use api::proto::inspect::{
    ObjectKind, WatchObjectsRequest, inspect_service_client::InspectServiceClient, object::Kind as Content,
    watch_objects_response::Event,
};
use portico_cli::echo::{self, EchoConfig};
use runtime::drain;
use tests::{
    binary::Portico,
    client::{self, Client},
};
use tonic::transport::Channel;

const NET: &str = "127.251";
const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

fn manifests(directory: &Path) {
    let mut text = String::new();
    for (index, node) in NODES.iter().enumerate() {
        let last = index + 1;
        text.push_str(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n\
             status: {{addresses: [{{type: InternalIP, address: {NET}.1.{last}}}]}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: web-{last}, labels: {{app: web}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: echo, ports: [{{containerPort: 8080}}]}}]}}\n\
             status: {{phase: Running, podIP: {NET}.2.{last}}}\n---\n"
        ));
    }
    text.push_str(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: NodePort\n  selector: {app: web}\n  \
         ports: [{port: 80, targetPort: 8080, nodePort: 30080, appProtocol: http}]\n",
    );
    std::fs::write(directory.join("all.yaml"), text).expect("a manifest can be written");
}

fn gateway(directory: &Path) -> Portico {
    let directory = directory.display().to_string();
    let listen = |port: u16| format!("{NET}.0.1:{port}");
    Portico::start(&[
        "gateway",
        "--manifests",
        &directory,
        "--service-cidr",
        &format!("{NET}.96.0/20"),
        "--load-balancer-pool",
        &format!("{NET}.128.0/24"),
        "--discovery-listen",
        &listen(18_000),
        "--health-listen",
        &listen(18_001),
        "--admin-listen",
        &listen(18_080),
    ])
}

fn agent(node: &str) -> Portico {
    Portico::start(&["agent", "--node", node, "--workers", "1", "--gateway", &format!("http://{NET}.0.1:18000")])
}

/// Waits until the gateway says that three agents are connected and up to date.
async fn agents_connected() {
    let endpoint = Channel::from_shared(format!("http://{NET}.0.1:18001")).expect("a URL");
    let request = || WatchObjectsRequest { kind: ObjectKind::Agent as i32, ..WatchObjectsRequest::default() };
    let wait = async {
        loop {
            let Ok(mut inspect) = InspectServiceClient::connect(endpoint.clone()).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let Ok(response) = inspect.watch_objects(request()).await else { continue };
            let (mut events, mut current) = (response.into_inner(), std::collections::BTreeSet::new());
            while let Ok(Some(event)) = events.message().await {
                let Some(Event::Updated(object)) = event.event else { continue };
                if let Some(Content::Agent(agent)) = object.kind {
                    let good = agent.connected && agent.behind == 0 && agent.acknowledged_resources > 0;
                    if good {
                        current.insert(agent.node)
                    } else {
                        current.remove(&agent.node)
                    };
                }
                if current.len() == NODES.len() {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.expect("three agents connect within a minute");
}

/// A counter of the gateway's metrics.
async fn metric(name: &str, labels: &str) -> f64 {
    let admin: SocketAddr = format!("{NET}.0.1:18080").parse().expect("an address");
    let answer = client::get([127, 0, 0, 1].into(), admin, "gateway", "/metrics").await;
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(labels));
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    value.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_outlives_the_gateway_and_agents_resume() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    manifests(directory.path());
    let (pods, watch) = drain::channel();
    for (index, node) in NODES.iter().enumerate() {
        let listen = format!("{NET}.2.{}:8080", index + 1).parse().expect("an address");
        let pod = format!("web-{}", index + 1);
        let config =
            EchoConfig { listen: vec![listen], pod, namespace: "default".to_owned(), node: (*node).to_owned() };
        tokio::spawn(echo::bind(config).expect("a free address").serve(watch.clone()));
    }
    let first = gateway(directory.path());
    let agents: Vec<Portico> = NODES.iter().map(|node| agent(node)).collect();
    agents_connected().await;

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load = (1..=3u8).map(|node| {
        let (stop, done) = (stop.clone(), done.clone());
        let (from, to): (IpAddr, SocketAddr) =
            (format!("{NET}.9.{node}").parse().expect("ip"), format!("{NET}.1.{node}:30080").parse().expect("address"));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut client = Client::connect(from, to).await.expect("the node port is open");
                for _ in 0..20 {
                    let answer = client.get("web", "/").await.expect("an answer");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    let load: Vec<_> = load.collect();
    let progress = async |more: usize| {
        let from = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < from + more {
            tokio::task::yield_now().await;
        }
    };
    progress(200).await;
    drop(first);
    progress(500).await;
    let second = gateway(directory.path());
    agents_connected().await;
    progress(200).await;
    stop.store(true, Ordering::Relaxed);
    for load in load {
        load.await.expect("no request failed");
    }

    assert_eq!(metric("portico_control_plane_resync_total", "kind=\"none\"").await, 3.0);
    assert_eq!(metric("portico_control_plane_resync_total", "kind=\"full\"").await, 0.0);
    for agent in agents {
        assert_eq!(agent.terminate(), Some(0), "an agent drains and ends with 0");
    }
    assert_eq!(second.terminate(), Some(0), "the gateway ends with 0");
    pods.drained().await;
}
