//! A whole Portico in one process: gateway, agents and sample backends, at addresses of its own, so that many can run
//! side by side. Manifests are written with `127.N.` for the addresses; each stack has its own N.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use api::proto::inspect::{
    ListObjectsRequest, ListObjectsResponse, Object, ObjectKind, WatchObjectsRequest,
    inspect_service_client::InspectServiceClient, object::Kind as Content,
};
use clap::Parser;
use portico_cli::standalone::{self, StandaloneArgs};
use runtime::args::Problems;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::transport::Channel;

/// Nothing that a stack is asked to do takes this long; what does is reported with what was seen last.
const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU8 = AtomicU8::new(10);

/// A running Portico.
pub struct Stack {
    net: u8,
    manifests: TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    inspect: InspectServiceClient<Channel>,
}

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    standalone: StandaloneArgs,
}

// === impl Stack ===

impl Stack {
    /// Starts a stack with these manifests, named by file, and waits until every agent serves.
    pub async fn start(manifests: &[(&str, &str)]) -> Self {
        Self::start_with(manifests, &[]).await
    }

    /// As [`Stack::start`], with more options of `portico standalone`.
    pub async fn start_with(manifests: &[(&str, &str)], options: &[&str]) -> Self {
        // It fails only if another stack of the process has installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let net = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in manifests {
            let text = text.replace("127.N.", &format!("127.{net}."));
            std::fs::write(directory.path().join(name), text).expect("a manifest can be written");
        }
        let gateway = format!("127.{net}.0.1");
        let mut line = vec!["portico".to_owned()];
        for (name, value) in [
            ("manifests", directory.path().display().to_string()),
            ("discovery-listen", format!("{gateway}:18000")),
            ("health-listen", format!("{gateway}:18001")),
            ("admin-listen", format!("{gateway}:18080")),
            ("service-cidr", format!("127.{net}.96.0/20")),
            ("load-balancer-pool", format!("127.{net}.128.0/24")),
            ("workers", "2".to_owned()),
            ("drain-timeout", "3s".to_owned()),
        ] {
            if !options.iter().any(|option| option.starts_with(&format!("--{name}="))) {
                line.push(format!("--{name}={value}"));
            }
        }
        line.extend(options.iter().map(|option| option.replace("127.N.", &format!("127.{net}."))));
        let options = Options::parse_from(line).standalone;
        let mut problems = Problems::new();
        let options = options.parse(&mut problems);
        problems.finish().expect("the options of a test are right");
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // A dropped sender stops the stack as well.
            let _ = stopped.await;
            "the test is over"
        };
        let task = tokio::spawn(standalone::run_until(options.expect("no problem was reported"), stopped));
        let endpoint = Channel::from_shared(format!("http://{gateway}:18001")).expect("a URL");
        let inspect = InspectServiceClient::new(endpoint.connect_lazy());
        let this = Self { net, manifests: directory, stop: Some(stop), task: Some(task), inspect };
        this.serving().await;
        this
    }

    /// An address of this stack: `ip("1.1")` is 127.N.1.1.
    pub fn ip(&self, rest: &str) -> IpAddr {
        let address: Ipv4Addr = format!("127.{}.{rest}", self.net).parse().expect("two octets");
        address.into()
    }

    /// An address with port: `at("1.1", 80)` is 127.N.1.1:80.
    pub fn at(&self, rest: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(rest), port)
    }

    /// Path of a manifest.
    pub fn path(&self, name: &str) -> PathBuf {
        self.manifests.path().join(name)
    }

    /// Writes a manifest as editors do: a new file moved over the old one.
    pub fn write(&self, name: &str, text: &str) {
        let text = text.replace("127.N.", &format!("127.{}.", self.net));
        let draft = self.manifests.path().join(format!(".{name}.draft"));
        std::fs::write(&draft, text).expect("a manifest can be written");
        std::fs::rename(&draft, self.path(name)).expect("a manifest can be moved");
    }

    /// Removes a manifest.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("the manifest is there");
    }

    /// Lists the objects of a kind, with the problems of the source.
    pub async fn list(&self, kind: ObjectKind) -> ListObjectsResponse {
        let request = ListObjectsRequest { kind: kind as i32, ..ListObjectsRequest::default() };
        self.inspect.clone().list_objects(request).await.expect("the gateway answers").into_inner()
    }

    /// Waits until the objects of a kind are as expected; then until all agents have applied that.
    pub async fn until(&self, kind: ObjectKind, what: &str, done: impl Fn(&[Object]) -> bool) {
        self.watch(kind, what, done).await;
        self.serving().await;
    }

    /// Waits until the ready endpoints of a Service are at these addresses, on all agents.
    pub async fn until_ready(&self, service: &str, addresses: &[IpAddr]) {
        let wanted: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
        let what = format!("{service} is served by {wanted:?}");
        self.until(ObjectKind::Endpoint, &what, |objects| {
            let ready = objects.iter().filter_map(|object| match &object.kind {
                Some(Content::Endpoint(endpoint)) if endpoint.service == service && endpoint.ready => {
                    Some(endpoint.address.clone())
                }
                _ => None,
            });
            ready.collect::<BTreeSet<_>>() == wanted
        })
        .await;
    }

    /// Waits until there is an agent for each node, and all of them hold the newest state.
    pub async fn serving(&self) {
        let mut nodes = 0;
        self.watch(ObjectKind::Node, "the nodes are listed", |objects| !objects.is_empty()).await;
        for _ in self.list(ObjectKind::Node).await.objects {
            nodes += 1;
        }
        self.watch(ObjectKind::Agent, "every agent is up to date", |objects| {
            let current = objects.iter().filter(|object| match &object.kind {
                Some(Content::Agent(agent)) => agent.connected && agent.behind == 0 && agent.acknowledged_resources > 0,
                _ => false,
            });
            current.count() >= nodes
        })
        .await;
    }

    /// Follows a kind until its objects are as expected. Every step is an event of the gateway's watch.
    async fn watch(&self, kind: ObjectKind, what: &str, done: impl Fn(&[Object]) -> bool) {
        let mut seen = Vec::new();
        let watched = tokio::time::timeout(PATIENCE, self.follow(kind, &mut seen, done)).await;
        if watched.is_err() {
            panic!("waited in vain until {what}; last seen: {seen:#?}");
        }
    }

    async fn follow(&self, kind: ObjectKind, seen: &mut Vec<Object>, done: impl Fn(&[Object]) -> bool) {
        use api::proto::inspect::watch_objects_response::Event;
        loop {
            let request = WatchObjectsRequest { kind: kind as i32, ..WatchObjectsRequest::default() };
            // At the start the gateway may not listen yet; connecting again is the way to wait for it.
            let Ok(response) = self.inspect.clone().watch_objects(request).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let mut events = response.into_inner();
            seen.clear();
            let mut synced = false;
            while let Ok(Some(event)) = events.message().await {
                match event.event {
                    Some(Event::Updated(object)) => {
                        seen.retain(|known| known.key != object.key);
                        seen.push(object);
                    }
                    Some(Event::Removed(key)) => seen.retain(|known| known.key.as_ref() != Some(&key)),
                    Some(Event::Synced(_)) => synced = true,
                    None => {}
                }
                if synced && done(seen) {
                    return;
                }
            }
        }
    }

    /// Ends the stack as a signal would, and waits until it has drained.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let task = self.task.take().expect("a stack is stopped once");
        task.await.expect("no panic").expect("a clean end");
    }
}
