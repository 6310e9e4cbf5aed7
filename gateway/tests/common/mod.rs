//! A gateway in this process, on free ports, and an agent that holds what it is sent.

#![allow(dead_code, reason = "each test file is a crate of its own, and uses a part of this")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use api::{
    delta::client::{Client, Received},
    proto::discovery::{WatchRequest, WatchResponse, Welcome, discovery_service_client::DiscoveryServiceClient},
    resource::{Key, Kind, Resource},
};
use clap::Parser as _;
use gateway::{
    config::Args,
    server::{Error, Running, start as start_gateway},
};
use runtime::{
    args::Problems,
    drain,
    telemetry::{Component, Telemetry, settings::Settings},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Far more than anything takes here; a test that waits for it has failed.
pub const LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// A running gateway.
pub struct Gateway {
    pub discovery: String,
    pub health: String,
    pub readiness: runtime::ready::Readiness,
    pub registry: prometheus::Registry,
    trigger: drain::Trigger,
    ended: tokio::task::JoinHandle<Result<(), Error>>,
    _telemetry: Component,
}

/// Starts a gateway on free ports from a directory, with further options.
async fn start(directory: &Path, options: &[&str]) -> (Result<Running, Error>, Component, drain::Trigger) {
    let directory = directory.to_str().expect("a path that is text");
    launch(&[&["--manifests", directory], options].concat()).await
}

/// Starts a gateway on free ports, with these options.
async fn launch(options: &[&str]) -> (Result<Running, Error>, Component, drain::Trigger) {
    let mut problems = Problems::new();
    let mut words = vec!["gateway"];
    words.extend(options);
    for option in ["--discovery-listen", "--health-listen", "--admin-listen"] {
        if !options.contains(&option) {
            words.extend([option, "127.0.0.1:0"]);
        }
    }
    let config = Cli::parse_from(words).args.parse(&mut problems);
    problems.finish().expect("the options are right");
    let settings = Settings::parse(|_| None, &mut Problems::new());
    let telemetry = Telemetry::new(settings).expect("nothing is exported");
    let telemetry = telemetry.component("portico-control-plane", vec![]).expect("a component");
    let (trigger, watch) = drain::channel();
    let running = start_gateway(config.expect("no problem means a config"), &telemetry, watch).await;
    (running, telemetry, trigger)
}

/// Why a gateway does not start.
pub async fn start_error(directory: &Path, options: &[&str]) -> String {
    start(directory, options).await.0.map(drop).expect_err("does not start").to_string()
}

impl Gateway {
    pub async fn start(directory: &Path) -> Self {
        let directory = directory.to_str().expect("a path that is text");
        Self::launch("http", &["--manifests", directory, "--node-lease", "3s"]).await
    }

    /// Starts one with these options, whose discovery port has this scheme.
    pub async fn launch(scheme: &str, options: &[&str]) -> Self {
        let (running, telemetry, trigger) = launch(options).await;
        let running = running.expect("starts");
        Self {
            discovery: format!("{scheme}://{}", running.discovery),
            health: format!("http://{}", running.health),
            readiness: running.readiness.clone(),
            registry: telemetry.registry.clone(),
            trigger,
            ended: tokio::spawn(running.wait()),
            _telemetry: telemetry,
        }
    }

    /// Drains, and waits for the end.
    pub async fn stop(self) {
        let ended = async {
            self.trigger.drained().await;
            self.ended.await.expect("no panic").expect("a clean end");
        };
        tokio::time::timeout(LIMIT, ended).await.expect("a drain ends");
    }
}

/// An agent that applies what it is sent, and refuses nothing.
pub struct Agent {
    client: Client,
    pub held: BTreeMap<Key, Resource>,
    /// Resources set and removed by the last commit.
    pub last: (usize, usize),
    pub commits: usize,
}

/// Its open stream.
pub struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    pub welcome: Welcome,
}

impl Agent {
    pub fn new(node: &str) -> Self {
        Self { client: Client::new(node, "test"), held: BTreeMap::new(), last: (0, 0), commits: 0 }
    }

    pub async fn connect(&mut self, gateway: &str) -> Stream {
        let channel = Endpoint::from_shared(gateway.to_owned()).expect("a URL").connect().await.expect("connects");
        self.open(channel, None).await.expect("is served")
    }

    /// Opens a stream over `channel`, with this token.
    pub async fn open(&mut self, channel: Channel, token: Option<&str>) -> Result<Stream, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        requests.send(self.client.hello()).await.expect("the channel has room");
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("is text");
            request.metadata_mut().insert("authorization", value);
        }
        let mut responses = DiscoveryServiceClient::new(channel).watch(request).await?.into_inner();
        let first = tokio::time::timeout(LIMIT, responses.message()).await.expect("something is said")?;
        match self.client.receive(first.expect("a message")).expect("the gateway keeps the protocol") {
            Received::Welcome(welcome) => Ok(Stream { requests, responses, welcome }),
            other => panic!("{other:?} instead of a welcome"),
        }
    }

    /// The next message; `None` at the end of the stream.
    pub async fn next(&mut self, stream: &mut Stream) -> Option<Received> {
        let response = tokio::time::timeout(LIMIT, stream.responses.message()).await.expect("something is said");
        let received = self.client.receive(response.ok()??).expect("the gateway keeps the protocol");
        match &received {
            Received::Staged(ack) => stream.requests.send(ack.clone()).await.expect("the stream is open"),
            Received::Commit(changes, _) => {
                self.last = (changes.set.len(), changes.removed.len());
                self.commits += 1;
                for changed in &changes.set {
                    let resource = Resource::decode(changed.key.kind, changed.body.clone()).expect("is valid");
                    self.held.insert(changed.key.clone(), resource);
                }
                changes.removed.iter().for_each(|key| drop(self.held.remove(key)));
                let ack = self.client.applied(&[]);
                stream.requests.send(ack).await.expect("the stream is open");
            }
            Received::Welcome(_) | Received::Goodbye(_) => {}
        }
        Some(received)
    }

    /// Reads until what is held is as wanted.
    pub async fn until(&mut self, stream: &mut Stream, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            if self.next(stream).await.is_none() {
                panic!("the stream ended; held: {:#?}", self.held);
            }
        }
    }

    /// Reads up to and including the next commit.
    pub async fn commit(&mut self, stream: &mut Stream) {
        let before = self.commits;
        self.until(stream, |agent| agent.commits > before).await;
    }

    pub fn names(&self, kind: Kind) -> Vec<&str> {
        self.held.keys().filter(|key| key.kind == kind).map(|key| &*key.name).collect()
    }
}
