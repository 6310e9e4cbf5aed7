//! The kubelet's part of standalone: runs the sample backend for each Pod that asks for it, and ends it with the Pod.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use gateway::watch::object::{Event, Kind, Object, ObjectKey};
use runtime::drain;
use tokio::task::JoinHandle;

use crate::echo::{self, EchoConfig};

/// The annotation of a Pod that wants to be run.
const ANNOTATION: &str = "portico.dev/echo";

/// Port of a Pod that names none.
const DEFAULT_PORT: u16 = 8080;

/// A Pod that goes away takes connections for this long, as one with a preStop hook would: nodes learn of it meanwhile.
const GRACE: Duration = Duration::from_secs(1);

/// Backends by Pod.
#[derive(Default)]
pub struct Pods {
    running: BTreeMap<ObjectKey, Running>,
    /// Those of Pods that went, until their grace is over.
    leaving: Vec<Running>,
}

struct Running {
    config: EchoConfig,
    drain: Arc<drain::Trigger>,
    task: JoinHandle<()>,
}

// === impl Pods ===

impl Pods {
    /// Starts and ends backends as one event demands.
    pub async fn apply(&mut self, event: Event) {
        match event {
            Event::Reset(Kind::Pod, objects) => {
                let keys: Vec<ObjectKey> = objects.iter().map(Object::key).collect();
                let gone: Vec<ObjectKey> = self.running.keys().filter(|key| !keys.contains(key)).cloned().collect();
                gone.iter().for_each(|key| self.stop(key));
                for object in objects {
                    self.set(&object).await;
                }
            }
            Event::Apply(object) => self.set(&object).await,
            Event::Delete(key) => self.stop(&key),
            Event::Reset(..) => {}
        }
    }

    async fn set(&mut self, object: &Object) {
        let key = object.key();
        let Some(config) = wanted(object) else { return self.stop(&key) };
        if self.running.get(&key).is_some_and(|running| running.config == config && !running.task.is_finished()) {
            return;
        }
        // The address may be the same, also where a Pod comes back at once: wait until it is free.
        let in_the_way =
            self.leaving.extract_if(.., |old| old.config.listen.iter().any(|at| config.listen.contains(at)));
        for old in self.running.remove(&key).into_iter().chain(in_the_way) {
            old.drain.start();
            let _ = old.task.await;
        }
        let bound = match echo::bind(config.clone()) {
            Ok(bound) => bound,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(pod = %key, reason = source, "cannot run the sample backend: {error}");
                return;
            }
        };
        let (drain, watch) = drain::channel();
        let name = key.to_string();
        let task = tokio::spawn(async move {
            if let Err(error) = bound.serve(watch).await {
                tracing::warn!(pod = name, "the sample backend ended: {error}");
            }
        });
        self.running.insert(key, Running { config, drain: Arc::new(drain), task });
    }

    fn stop(&mut self, key: &ObjectKey) {
        let Some(old) = self.running.remove(key) else { return };
        let drain = old.drain.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            drain.start();
        });
        self.leaving.retain(|other| !other.task.is_finished());
        self.leaving.push(old);
    }
}

/// The backend that a Pod asks for: every declared container port at the Pod's addresses.
fn wanted(object: &Object) -> Option<EchoConfig> {
    let Object::Pod(pod) = object else { return None };
    let annotations = pod.metadata.annotations.as_ref()?;
    if annotations.get(ANNOTATION).map(String::as_str) != Some("true") {
        return None;
    }
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> = listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort();
    addresses.dedup();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mut ports: Vec<u16> = ports.filter_map(|port| u16::try_from(port.container_port).ok()).collect();
    if ports.is_empty() {
        ports.push(DEFAULT_PORT);
    }
    ports.sort_unstable();
    ports.dedup();
    let listen = addresses.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port))).collect();
    Some(EchoConfig {
        listen,
        pod: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
    })
}
