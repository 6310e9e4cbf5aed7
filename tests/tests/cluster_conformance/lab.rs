//! A cluster with the Services of the matrix, and where everything in it is.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{
    core::v1::{Pod, Service as ServiceObject},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    probe::{self, Seen, Transport},
    sandbox::{
        Sandbox, netns,
        plan::{Role, node_name},
        shared,
    },
};

use crate::matrix::{Client, Destination, ENTRY, Endpoint, Family, OTHER, Probe, Service, State};

/// Port of every Service, and one that none has.
const PORT: u16 = 80;
const UNKNOWN_PORT: u16 = 81;
/// Nobody gets these: addresses are given out from the other end of the range, and there are few Services.
const UNALLOCATED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 251, 17)), IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0xfb11))];
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// What the node by which traffic enters has beside the addresses of its Node object. It is not chosen as a source.
const SECOND_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 245, 0, 201)), IpAddr::V6(Ipv6Addr::new(0xfd45, 0, 0, 0, 0, 0, 0, 0x201))];
/// The Service that is made last: who serves it has heard of all.
const CANARY: &str = "canary";
const PATIENCE: Duration = Duration::from_secs(90);
/// What the node by which traffic enters is the way to, for who is outside.
const ROUTED: [&str; 6] =
    ["10.96.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "fd96::/112", "2001:db8:e::/64", "2001:db8:f::/64"];

/// A cluster with everything that is asked about, and nobody who serves it yet.
pub struct Lab {
    pub sandbox: Sandbox,
    frontends: BTreeMap<String, Frontend>,
    /// Namespaces and addresses of Pods, by name.
    pods: BTreeMap<String, (String, [IpAddr; 2])>,
}

/// Where a Service answers.
struct Frontend {
    cluster_ips: [IpAddr; 2],
    external_ips: [IpAddr; 2],
    balancer_ips: [IpAddr; 2],
    node_ports: [u16; 2],
    health_port: Option<u16>,
}

// === impl Lab ===

impl Lab {
    /// Makes Pods, Services, their slices and the status of their load balancers in this order, the canary last.
    ///
    /// # Errors
    /// When the cluster does not take them.
    pub async fn prepare(sandbox: Sandbox, services: &[Service]) -> Result<Self> {
        for role in sandbox.plan().roles() {
            let settings = || if role == Role::Client { Ok(()) } else { answer_every_mistake() };
            netns::within(&role.namespace(), settings)?;
        }
        let [v4, v6] = Role::Node(ENTRY).addresses();
        let via = |range: &str| format!("route add {range} via {}", if range.contains(':') { v6 } else { v4 });
        netns::ip(Some(&Role::Client.namespace()), &ROUTED.map(via))?;
        let second = ["/24", "/64 nodad preferred_lft 0"];
        let address = |(ip, how): (IpAddr, &str)| format!("address add {ip}{how} dev eth0");
        let second: Vec<String> = SECOND_ADDRESSES.into_iter().zip(second).map(address).collect();
        netns::ip(Some(&Role::Node(ENTRY).namespace()), &second)?;
        let api = sandbox.client().await?;
        let mut this = Self { sandbox, frontends: BTreeMap::new(), pods: BTreeMap::new() };
        for node in [ENTRY, OTHER] {
            for kind in ["echo", "client"] {
                this.pods.insert(format!("{kind}-{node}"), pod(&api, kind, node).await?);
            }
        }
        let canary = Service {
            name: CANARY.to_owned(),
            endpoints: vec![Endpoint { node: ENTRY, state: State::Ready }],
            ..services.first().context("there are Services")?.clone()
        };
        for (number, service) in (1..).zip(services.iter().chain([&canary])) {
            let frontend = make_service(&api, service, number).await?;
            this.slices(&api, service).await?;
            this.frontends.insert(service.name.clone(), frontend);
        }
        Ok(this)
    }

    /// Waits until every node serves the canary in both families, at its external IPs too: gateways that have not yet
    /// been told which of those are allowed leave them out.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn served(&self) -> Result<()> {
        let frontend = &self.frontends[CANARY];
        let deadline = Instant::now() + PATIENCE;
        for node in 1..=shared::NODES {
            for &address in frontend.balancer_ips.iter().chain(&frontend.external_ips) {
                let to = SocketAddr::new(address, PORT);
                loop {
                    let seen =
                        probe::ask(&Role::Node(node).namespace(), to, Transport::Tcp, Duration::from_secs(1)).await;
                    if matches!(seen, Seen::Answer { .. }) {
                        break;
                    }
                    if Instant::now() > deadline {
                        bail!("node-{node} does not serve {to}: {seen:?}");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        Ok(())
    }

    /// Asks one question.
    pub async fn ask(&self, probe: &Probe<'_>, patience: Duration) -> Seen {
        probe::ask(&self.namespace(probe.client), self.destination(probe), probe.transport, patience).await
    }

    /// The network namespace of a client.
    pub fn namespace(&self, client: Client) -> String {
        match client {
            Client::Pod(node) => self.pods[&format!("client-{node}")].0.clone(),
            Client::Echo(node) => self.pods[&format!("echo-{node}")].0.clone(),
            Client::Node(node) => Role::Node(node).namespace(),
            Client::Outside => Role::Client.namespace(),
        }
    }

    /// The address that a client asks from.
    pub fn address(&self, client: Client, family: Family) -> IpAddr {
        let addresses = match client {
            Client::Pod(node) => self.pods[&format!("client-{node}")].1,
            Client::Echo(node) => self.pods[&format!("echo-{node}")].1,
            Client::Node(node) => Role::Node(node).addresses(),
            Client::Outside => Role::Client.addresses(),
        };
        addresses[family as usize]
    }

    /// Where a question goes.
    pub fn destination(&self, probe: &Probe<'_>) -> SocketAddr {
        let frontend = &self.frontends[&probe.service.name];
        let family = probe.family as usize;
        let node_port = frontend.node_ports[probe.transport as usize];
        match probe.destination {
            Destination::ClusterIp => SocketAddr::new(frontend.cluster_ips[family], PORT),
            Destination::ExternalIp => SocketAddr::new(frontend.external_ips[family], PORT),
            Destination::LoadBalancerIp => SocketAddr::new(frontend.balancer_ips[family], PORT),
            Destination::NodePort => SocketAddr::new(Role::Node(ENTRY).addresses()[family], node_port),
            Destination::SecondAddress => SocketAddr::new(SECOND_ADDRESSES[family], node_port),
            Destination::Loopback => SocketAddr::new(LOOPBACK[family], node_port),
            Destination::UnknownPort => SocketAddr::new(frontend.cluster_ips[family], UNKNOWN_PORT),
            Destination::Unallocated => SocketAddr::new(UNALLOCATED[family], PORT),
        }
    }

    /// The port on which load balancers ask whether a node has endpoints, for Services that have one.
    pub fn health_port(&self, service: &Service) -> Option<u16> {
        self.frontends[&service.name].health_port
    }

    /// The endpoints of a Service, written by hand so that their conditions stay.
    async fn slices(&self, api: &kube::Client, service: &Service) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::default_namespaced(api.clone());
        for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let endpoint = |endpoint: &Endpoint| {
                let (ready, serving, terminating) = match endpoint.state {
                    State::Ready => (true, true, false),
                    State::Draining => (false, true, true),
                    State::NotReady => (false, false, false),
                    State::Gone => (false, false, true),
                };
                json!({
                    "addresses": [self.address(Client::Echo(endpoint.node), family)],
                    "nodeName": node_name(endpoint.node),
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                })
            };
            let slice: EndpointSlice = typed(json!({
                "metadata": {
                    "name": format!("{}-{}", service.name, address_type.to_lowercase()),
                    "labels": {
                        "kubernetes.io/service-name": service.name,
                        "endpointslice.kubernetes.io/managed-by": "conformance",
                    },
                },
                "addressType": address_type,
                "ports": [
                    {"name": "tcp", "protocol": "TCP", "port": 8080},
                    {"name": "udp", "protocol": "UDP", "port": 8080},
                ],
                "endpoints": service.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            }))?;
            slices
                .create(&PostParams::default(), &slice)
                .await
                .with_context(|| format!("slice of {}", service.name))?;
        }
        Ok(())
    }
}

/// An echo Pod on a node. Gives its network namespace and its addresses once it is ready.
async fn pod(api: &kube::Client, kind: &str, node: u8) -> Result<(String, [IpAddr; 2])> {
    let pods: Api<Pod> = Api::default_namespaced(api.clone());
    let name = format!("{kind}-{node}");
    let pod: Pod = typed(json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": node_name(node),
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "echo", "image": "portico",
                "args": ["echo", "--listen=0.0.0.0:8080,[::]:8080"],
                "env": [{"name": "POD_NAME", "value": name}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            }],
        },
    }))?;
    // The first Pods of a cluster may come before the ServiceAccount that they are of.
    until(&format!("Pod {name} is taken"), || async {
        pods.create(&PostParams::default(), &pod).await.map_err(|error| error.to_string())
    })
    .await?;
    until(&format!("Pod {name} is ready"), || async {
        let pod = pods.get(&name).await.map_err(|error| error.to_string())?;
        let status = pod.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        if !conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            return Err(format!("{conditions:?}"));
        }
        let uid = pod.metadata.uid.unwrap_or_default();
        let addresses: Vec<String> = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect();
        let namespace = format!("portico-pod-{}", uid.get(..8).unwrap_or_default());
        Ok((namespace, both(&addresses).map_err(|error| error.to_string())?))
    })
    .await
}

/// A Service without selector, with a load balancer that has done its work. Numbers begin with 1.
async fn make_service(api: &kube::Client, service: &Service, number: u16) -> Result<Frontend> {
    let services: Api<ServiceObject> = Api::default_namespaced(api.clone());
    let [external_ips, balancer_ips] = [([198, 51, 100], 0xe), ([203, 0, 113], 0xf)].map(|(v4, v6)| {
        let last = u8::try_from(number).expect("few Services");
        [IpAddr::from([v4[0], v4[1], v4[2], last]), IpAddr::from([0x2001, 0xdb8, v6, 0, 0, 0, 0, number])]
    });
    let annotations: BTreeMap<String, &str> =
        service.annotations.iter().map(|(name, value)| (format!("portico.dev/{name}"), *value)).collect();
    let object: ServiceObject = typed(json!({
        "metadata": {"name": service.name, "annotations": annotations},
        "spec": {
            "type": "LoadBalancer",
            // Nobody's: the status is written below.
            "loadBalancerClass": "portico.dev/none",
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": external_ips,
            "internalTrafficPolicy": format!("{:?}", service.internal),
            "externalTrafficPolicy": format!("{:?}", service.external),
            "loadBalancerSourceRanges": service.ranges,
            "sessionAffinity": if service.sticky { "ClientIP" } else { "None" },
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": PORT},
                {"name": "udp", "protocol": "UDP", "port": PORT},
            ],
        },
    }))?;
    let name = &service.name;
    let made = services.create(&PostParams::default(), &object).await.with_context(|| format!("Service {name}"))?;
    let ingress = balancer_ips.map(|ip| json!({"ip": ip}));
    let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    services.patch_status(name, &PatchParams::default(), &status).await.context("status of a Service")?;
    let spec = made.spec.context("a Service has a spec")?;
    let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|port| u16::try_from(port.node_port?).ok());
    let ports: Vec<u16> = ports.collect();
    Ok(Frontend {
        cluster_ips: both(&spec.cluster_ips.unwrap_or_default())?,
        external_ips,
        balancer_ips,
        node_ports: ports.try_into().ok().context("a node port for each port")?,
        health_port: spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()),
    })
}

/// Linux limits how often it tells of mistakes by ICMP: the same host, and in a second altogether. The proxies are asked
/// here, not those limits.
fn answer_every_mistake() -> Result<()> {
    const LIMITS: [(&str, &str); 4] = [
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "1000000"),
        ("ipv4/icmp_msgs_burst", "1000000"),
    ];
    for (setting, value) in LIMITS {
        match fs::write(format!("/proc/sys/net/{setting}"), value) {
            // Older kernels have the limits of all messages for the whole machine only, where they are left alone.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            written => written.with_context(|| format!("cannot set {setting}"))?,
        }
    }
    Ok(())
}

fn typed<T: serde::de::DeserializeOwned>(object: Value) -> Result<T> {
    serde_json::from_value(object).context("the object is right")
}

/// IPv4 first.
fn both(addresses: &[String]) -> Result<[IpAddr; 2]> {
    let mut parsed: Vec<IpAddr> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    parsed.sort_by_key(IpAddr::is_ipv6);
    parsed.try_into().ok().with_context(|| format!("two addresses are wanted: {addresses:?}"))
}

async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(reason) if Instant::now() > deadline => bail!("waited in vain until {what}: {reason}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
