//! The ports on which load balancers and probes ask. They are open until the agent ends, also while it drains: that is
//! when their answers matter most (S16.3).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use api::resource::name::NamespacedName;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use runtime::{drain, port};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use super::{
    metrics::Metrics,
    proxy::{self, Facts, Question},
    service,
};
use crate::{
    apply::{control::Progress, programming::Programming},
    table::{Family, HealthCheck},
};

/// Ports that could not be opened are tried again this often.
const RETRY: Duration = Duration::from_secs(2);

/// Why a health-check node port is not there, as kube-proxy names it (S12.7).
pub const UNHEALTHY_PORT: &str = "FAILED_TO_START_SERVICE_HEALTHCHECK";

/// `X-Load-Balancing-Endpoint-Weight` (S12.4).
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Probes {
    /// Whether programming keeps up.
    pub programming: Programming,
    /// The table in force.
    pub progress: watch::Receiver<Progress>,
    /// Where answers are counted.
    pub metrics: Metrics,
    /// Whether the agent is ending.
    pub drain: drain::Watch,
}

/// A health-check node port at one address. Another Service at the same address is another port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    address: SocketAddr,
    service: NamespacedName,
}

/// The ports that are open.
type Serving = FuturesUnordered<BoxFuture<'static, ()>>;

/// A port that is wanted: open until this is dropped, or failed for the reason that was logged.
enum Opened {
    Serving(#[allow(dead_code, reason = "dropping the sender is the message")] oneshot::Sender<()>),
    Failed(std::io::ErrorKind, PortFault),
}

/// A health-check node port that cannot be opened (S12.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFault {
    /// Whose port it is.
    pub service: NamespacedName,
    /// Where it was to be.
    pub address: SocketAddr,
    /// The error of the system.
    pub message: String,
    /// When it was first seen.
    pub since: SystemTime,
}

/// Serves `/healthz` and `/livez` until it is dropped (S13).
pub async fn proxy(listener: TcpListener, probes: Probes) {
    let answer = move |request: Request<Incoming>, _: IpAddr| {
        let response = match request.uri().path() {
            "/healthz" => probes.proxy(Question::Health),
            "/livez" => probes.proxy(Question::Life),
            _ => response(404, "{\"paths\": [\"/healthz\", \"/livez\"]}".to_owned()),
        };
        async move { response }
    };
    port::serve(listener, "healthz", answer).await;
}

/// Keeps the health-check node ports of the table in force open, until it is dropped (S12). `faults` always has those that
/// cannot be opened.
pub async fn services(mut probes: Probes, faults: watch::Sender<Vec<PortFault>>) {
    let mut opened: BTreeMap<Place, Opened> = BTreeMap::new();
    // They run in here and not as tasks, so that every port is free again as soon as this is dropped.
    let mut serving: Serving = FuturesUnordered::new();
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let wanted = probes.places();
        // Close first, which the futures do when they are polled: a port may go from one Service to another.
        opened.retain(|place, _| wanted.contains(place));
        while let Some(Some(())) = serving.next().now_or_never() {}
        for place in wanted {
            let known = opened.remove(&place);
            let now = open(&place, known, &mut serving, &probes).await;
            opened.insert(place, now);
        }
        tell(&faults, &opened);
        let mut ended = false;
        while !ended {
            tokio::select! {
                // The control loop ends before the rest drains; what is open stays open until this is dropped.
                changed = probes.progress.changed(), if probes.progress.has_changed().is_ok() => ended = changed.is_ok(),
                _ = retry.tick() => ended = true,
                Some(()) = serving.next() => {}
            }
        }
    }
}

async fn open(place: &Place, known: Option<Opened>, serving: &mut Serving, probes: &Probes) -> Opened {
    let before = match known {
        Some(open @ Opened::Serving(_)) => return open,
        Some(Opened::Failed(kind, fault)) => Some((kind, fault)),
        None => None,
    };
    match TcpListener::bind(place.address).await {
        Ok(listener) => {
            let (probes, service, family) = (probes.clone(), place.service.clone(), Family::of(place.address.ip()));
            let answer = move |_: Request<Incoming>, _: IpAddr| {
                let response = probes.service(&service, family);
                async move { response }
            };
            let (open, closed) = oneshot::channel();
            serving.push(Box::pin(async move {
                tokio::select! {
                    () = port::serve(listener, "health-check node port", answer) => {}
                    // An error is the message: the sender was dropped.
                    _ = closed => {}
                }
            }));
            Opened::Serving(open)
        }
        Err(error) => {
            if let Some((kind, fault)) = before.filter(|(kind, _)| *kind == error.kind()) {
                return Opened::Failed(kind, fault);
            }
            let Place { address, service } = place.clone();
            let message = format!("cannot listen for health checks on {address}: {error}");
            tracing::warn!(%service, reason = UNHEALTHY_PORT, "{message}; trying again");
            Opened::Failed(error.kind(), PortFault { service, address, message, since: SystemTime::now() })
        }
    }
}

fn tell(faults: &watch::Sender<Vec<PortFault>>, opened: &BTreeMap<Place, Opened>) {
    let failed = opened.values().filter_map(|opened| match opened {
        Opened::Serving(_) => None,
        Opened::Failed(_, fault) => Some(fault.clone()),
    });
    let failed: Vec<_> = failed.collect();
    faults.send_if_modified(|before| {
        let differs = *before != failed;
        *before = failed;
        differs
    });
}

// === impl Probes ===

impl Probes {
    fn proxy(&self, question: Question) -> Response<Full<Bytes>> {
        let progress = self.progress.borrow();
        let facts = Facts {
            pace: self.programming.pace(),
            eligible: !progress.table.location.leaving,
            draining: self.drain.is_draining(),
        };
        drop(progress);
        let answer = proxy::answer(question, &facts, Instant::now(), SystemTime::now());
        self.metrics.answered(question, answer.status);
        response(answer.status, answer.body)
    }

    fn service(&self, service: &NamespacedName, family: Family) -> Response<Full<Bytes>> {
        let table = self.progress.borrow().table.clone();
        let healthy = self.programming.pace().in_time(Instant::now()) && !self.drain.is_draining();
        let Some(check) = table.health_checks.iter().find(|check| check.service == *service) else {
            // It closes within this turn of the loop.
            return response(503, "{}".to_owned());
        };
        let answer = service::answer(check, family, healthy);
        let mut response = response(answer.status, answer.body);
        response.headers_mut().insert(WEIGHT, answer.weight.into());
        response
    }

    /// Every health-check node port at every address that node ports have.
    fn places(&mut self) -> BTreeSet<Place> {
        let table = self.progress.borrow_and_update().table.clone();
        let at = |check: &HealthCheck, address: IpAddr| {
            let address = SocketAddr::new(address, check.port.get());
            Place { address, service: check.service.clone() }
        };
        let places = |check| table.node_port_addresses.iter().map(move |address| at(check, *address));
        table.health_checks.iter().flat_map(places).collect()
    }
}

fn response(status: u16, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
