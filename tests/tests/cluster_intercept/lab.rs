//! Two nodes with Pods and a client outside, each a network namespace, around one bridge. All labs have the same
//! addresses; their namespaces are their own, and end with them.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tests::binary;

use crate::probe::{self, Answer, Ask};

/// Every wait is for an event; this is when it will not come any more.
const LIMIT: Duration = Duration::from_secs(90);

/// The namespaces of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Between the nodes; the gateway is here.
    Lan,
    /// The node that tests enter by.
    Node1,
    Node2,
    /// On the first node: a Service has this Pod.
    Pod,
    /// On the first node, behind no Service.
    ClientPod,
    /// On the second node.
    FarPod,
    /// Not of the cluster.
    Outside,
}

pub struct Lab {
    id: String,
    manifests: TempDir,
    children: Vec<Child>,
    agents: Vec<(Place, Child)>,
}

// === impl Place ===

impl Place {
    const ALL: [Place; 7] =
        [Place::Lan, Place::Node1, Place::Node2, Place::Pod, Place::ClientPod, Place::FarPod, Place::Outside];

    fn label(self) -> &'static str {
        match self {
            Place::Lan => "lan",
            Place::Node1 => "n1",
            Place::Node2 => "n2",
            Place::Pod => "pod",
            Place::ClientPod => "cpod",
            Place::FarPod => "fpod",
            Place::Outside => "out",
        }
    }

    /// Its addresses, of each family.
    pub fn addresses(self) -> (&'static str, &'static str) {
        match self {
            Place::Lan => ("10.99.0.1", "fd99::1"),
            Place::Node1 => ("10.99.0.11", "fd99::11"),
            Place::Node2 => ("10.99.0.12", "fd99::12"),
            Place::Pod => ("10.98.1.10", "fd98:1::10"),
            Place::ClientPod => ("10.98.1.11", "fd98:1::11"),
            Place::FarPod => ("10.98.2.10", "fd98:2::10"),
            Place::Outside => ("10.99.0.100", "fd99::100"),
        }
    }
}

// === impl Lab ===

impl Lab {
    /// Namespaces, a gateway with the manifests beside this file, Pods that say who asks, and an agent on each node that is
    /// ready. `options` are further ones of the agents.
    pub async fn start(options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("pi{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let manifests = TempDir::new().expect("a temporary directory");
        std::fs::write(manifests.path().join("all.yaml"), include_str!("manifests.yaml")).expect("it is ours");
        let mut lab = Self { id, manifests, children: Vec::new(), agents: Vec::new() };
        lab.build();
        let directory = lab.manifests.path().display().to_string();
        lab.run(
            Place::Lan,
            &[
                "gateway",
                "--manifests",
                &directory,
                "--discovery-listen",
                "10.99.0.1:18000",
                "--service-cidr",
                "10.96.0.0/16,fd96::/112",
                "--load-balancer-pool",
                "10.97.0.0/24,fd97::/112",
            ],
        );
        for pod in [Place::Pod, Place::FarPod] {
            for listen in ["0.0.0.0:8080", "[::]:8080"] {
                lab.run(pod, &["echo", "--listen", listen, "--pod", pod.label()]);
            }
        }
        for node in [Place::Node1, Place::Node2] {
            lab.start_agent(node, options);
        }
        for node in [Place::Node1, Place::Node2] {
            lab.until_ready(node).await;
        }
        lab
    }

    fn build(&self) {
        for place in Place::ALL {
            let name = self.namespace(place);
            self.ip(&format!("netns add {name}"));
            self.ip(&format!("-n {name} link set lo up"));
            // Not every congestion control of the host is allowed in a new namespace.
            let settings = [
                "net.ipv4.tcp_congestion_control=reno",
                "net.ipv4.ip_forward=1",
                // Strict, as on some distributions: a packet has to come from where its source is.
                "net.ipv4.conf.all.rp_filter=1",
                "net.ipv6.conf.all.forwarding=1",
                "net.ipv6.conf.all.accept_dad=0",
                "net.ipv6.conf.default.accept_dad=0",
            ];
            self.must(place, "sysctl", &[&["-qw"][..], &settings[..]].concat());
        }
        let lan = self.namespace(Place::Lan);
        self.ip(&format!("-n {lan} link add br0 type bridge"));
        self.ip(&format!("-n {lan} link set br0 up"));
        self.assign(Place::Lan, "br0", (24, 64));
        for host in [Place::Node1, Place::Node2, Place::Outside] {
            self.link(host, Place::Lan, host.label());
            self.ip(&format!("-n {lan} link set {} master br0", host.label()));
            self.assign(host, "eth0", (24, 64));
        }
        for (pod, node) in [(Place::Pod, Place::Node1), (Place::ClientPod, Place::Node1), (Place::FarPod, Place::Node2)]
        {
            self.link(pod, node, pod.label());
            self.assign(pod, "eth0", (32, 128));
            let (inside, outside, device) = (self.namespace(pod), self.namespace(node), pod.label());
            let (ipv4, ipv6) = pod.addresses();
            self.ip(&format!("-n {outside} addr add fe80::1/64 dev {device} nodad"));
            self.ip(&format!("-n {outside} route add {ipv4}/32 dev {device}"));
            self.ip(&format!("-n {outside} -6 route add {ipv6}/128 dev {device}"));
            let (gateway, _) = node.addresses();
            self.ip(&format!("-n {inside} route add {gateway}/32 dev eth0"));
            self.ip(&format!("-n {inside} route add default via {gateway} dev eth0"));
            self.ip(&format!("-n {inside} -6 route add default via fe80::1 dev eth0"));
        }
        // As on most nodes; but in IPv4 the agent has to make the way to ClusterIPs itself.
        for node in [Place::Node1, Place::Node2] {
            let (name, (_, gateway)) = (self.namespace(node), Place::Lan.addresses());
            self.ip(&format!("-n {name} -6 route add default via {gateway}"));
        }
        // Services are reached through the first node.
        for (places, ranges, via) in [
            (&[Place::Lan, Place::Outside, Place::Node1][..], &[("10.98.2.0/24", "fd98:2::/64")][..], Place::Node2),
            (&[Place::Lan, Place::Outside, Place::Node2], &[("10.98.1.0/24", "fd98:1::/64")], Place::Node1),
            (&[Place::Outside], &[("10.96.0.0/16", "fd96::/112"), ("10.97.0.0/24", "fd97::/112")], Place::Node1),
            (&[Place::Node1], &[("10.97.0.0/24", "fd97::/112")], Place::Lan),
        ] {
            let (via4, via6) = via.addresses();
            for (place, (ipv4, ipv6)) in places.iter().flat_map(|place| ranges.iter().map(move |range| (place, range)))
            {
                let name = self.namespace(*place);
                self.ip(&format!("-n {name} route add {ipv4} via {via4}"));
                self.ip(&format!("-n {name} -6 route add {ipv6} via {via6}"));
            }
        }
    }

    fn link(&self, inner: Place, outer: Place, device: &str) {
        let (inside, outside) = (self.namespace(inner), self.namespace(outer));
        self.ip(&format!("link add eth0 netns {inside} type veth peer name {device} netns {outside}"));
        self.ip(&format!("-n {inside} link set eth0 up"));
        self.ip(&format!("-n {outside} link set {device} up"));
    }

    fn assign(&self, place: Place, device: &str, prefixes: (u8, u8)) {
        let (name, (ipv4, ipv6)) = (self.namespace(place), place.addresses());
        self.ip(&format!("-n {name} addr add {ipv4}/{} dev {device}", prefixes.0));
        self.ip(&format!("-n {name} addr add {ipv6}/{} dev {device} nodad", prefixes.1));
    }

    /// Name of a namespace.
    pub fn namespace(&self, place: Place) -> String {
        format!("{}-{}", self.id, place.label())
    }

    fn ip(&self, arguments: &str) {
        let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, place: Place, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(place), program]).args(arguments);
        command
    }

    /// What a program prints in a namespace, and whether it succeeded.
    pub fn output(&self, place: Place, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.command(place, program, arguments).output().expect("iproute2 is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program that has to succeed.
    pub fn must(&self, place: Place, program: &str, arguments: &[&str]) -> String {
        let (success, output) = self.output(place, program, arguments);
        assert!(success, "{program} {arguments:?} in {place:?}: {output}");
        output
    }

    fn spawn(&self, place: Place, arguments: &[&str]) -> Child {
        let program: PathBuf = binary::path();
        let mut command = self.command(place, &program.display().to_string(), arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("iproute2 is installed")
    }

    fn run(&mut self, place: Place, arguments: &[&str]) {
        let child = self.spawn(place, arguments);
        self.children.push(child);
    }

    /// Starts the agent of a node.
    pub fn start_agent(&mut self, node: Place, options: &[&str]) {
        let own = [
            "agent",
            "--node",
            node.label(),
            "--gateway",
            "http://10.99.0.1:18000",
            "--intercept",
            "on",
            "--workers",
            "2",
        ];
        let child = self.spawn(node, &[&own[..], options].concat());
        self.agents.push((node, child));
    }

    fn agent(&mut self, node: Place) -> &mut Child {
        let (_, agent) = self.agents.iter_mut().find(|(place, _)| *place == node).expect("an agent runs");
        agent
    }

    /// Kills the agent of a node, which learns nothing of it.
    pub fn kill_agent(&mut self, node: Place) {
        let agent = self.agent(node);
        agent.kill().expect("it runs");
        agent.wait().expect("it can be waited for");
        self.agents.retain(|(place, _)| *place != node);
    }

    /// Asks the agent of a node to end.
    pub fn stop_agent(&mut self, node: Place) {
        let pid = self.agent(node).id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill is installed");
        assert!(sent.success());
    }

    /// Waits for the end of an agent that was asked to.
    pub async fn until_agent_ended(&mut self, node: Place) {
        let deadline = Instant::now() + LIMIT;
        while self.agent(node).try_wait().expect("it can be waited for").is_none() {
            assert!(Instant::now() < deadline, "the agent of {node:?} does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.agents.retain(|(place, _)| *place != node);
    }

    /// Whether the agent of a node says that it serves.
    pub fn is_ready(&self, node: Place) -> bool {
        probe::is_ready(&self.namespace(node), node.addresses().0)
    }

    /// Waits until the agent of a node says that it serves.
    pub async fn until_ready(&self, node: Place) {
        self.until(&format!("the agent of {node:?} is ready"), || self.is_ready(node)).await;
    }

    /// Waits for an event that shows by asking for it.
    pub async fn until(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !happened() {
            assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks from a place, and says what came of it.
    pub fn ask(&self, from: Place, ask: Ask) -> Answer {
        probe::ask(&self.namespace(from), ask)
    }

    /// Adds a manifest, or replaces it.
    pub fn write(&self, name: &str, manifest: &str) {
        let (path, whole) = (self.manifests.path().join(name), self.manifests.path().join("new"));
        // In one step, so that nobody reads half of it.
        std::fs::write(&whole, manifest).and_then(|()| std::fs::rename(whole, path)).expect("it is ours");
    }

    /// How many addresses and ports of Services the rules of a node know, as its agent says.
    pub fn destinations(&self, node: Place) -> usize {
        let metrics = probe::metrics(&self.namespace(node), node.addresses().0);
        let line = metrics.lines().find_map(|line| line.strip_prefix("portico_intercept_destinations"));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no number of destinations: {metrics}"))
    }

    /// Whether the packet rules of a node are there.
    pub fn has_rules(&self, node: Place) -> bool {
        self.output(node, "nft", &["list", "table", "inet", "portico"]).0
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in self.children.iter_mut().chain(self.agents.iter_mut().map(|(_, agent)| agent)) {
            // It may have ended; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
        for place in Place::ALL {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(place)]).status();
        }
    }
}
