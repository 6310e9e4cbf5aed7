//! One request: where it goes, the attempts to get it there, the answer. Every early end is an [`Outcome`].

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use api::resource::service::{AppProtocol, Transport};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts, uri};
use tokio::net::TcpStream;

use super::{
    answer,
    body::RequestBody,
    h1,
    h2::flight::{Flight, Unanswered},
    headers::{self, Forwarded},
    reach::{Call, reach},
    reply::{Account, Reply},
    retry,
    socket::give_up_after,
    source::Way,
};
use crate::{
    alarm::Alarm,
    balance::{choose::Client, flow::FlowHash},
    http1::{fields::Fields, framing::Framing, response::ResponseHead},
    local::{Local, Upstream},
    report::{
        outcome::Outcome,
        record::{Attempt, Downstream},
        trace::{self, SpanContext},
        via::Via,
    },
    table::{Backend, Balance, Candidates, FrontendKind, HashKey, Table, Target},
};

/// What all requests of a downstream connection share.
pub struct Session {
    /// The worker.
    pub local: Rc<Local>,
    /// Facts of the connection.
    pub downstream: Arc<Downstream>,
    /// What the other end says of others is believed.
    trusted: bool,
    /// The client of the connection, as X-Forwarded-For has it.
    forwarded_for: HeaderValue,
    /// The Service whose certificate the client has seen.
    certified: Option<Arc<Target>>,
}

/// A request and what is known of it, while endpoints are tried.
struct Exchange<'a> {
    session: &'a Session,
    alarm: &'a Alarm,
    account: Account,
    parts: Parts,
    target: Arc<Target>,
    grpc: bool,
    /// The attempt that is noted last.
    attempt: SpanContext,
}

/// An attempt that gave no answer.
struct Failed {
    outcome: Outcome,
    /// The body, if the request may be sent again.
    again: Option<RequestBody>,
    /// The connection was an old one, so the endpoint itself may be well.
    stale: bool,
}

// === impl Session ===

impl Session {
    /// Of a connection; `certified` is the Service for which TLS was terminated.
    pub fn new(local: Rc<Local>, downstream: Arc<Downstream>, certified: Option<Arc<Target>>) -> Self {
        let client = downstream.client.ip().to_canonical();
        let trusted = local.trusts(client);
        let forwarded_for =
            HeaderValue::try_from(client.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { local, downstream, trusted, forwarded_for, certified }
    }

    /// The target of a request, by the table of this moment.
    fn resolve(&self, table: &Table, authority: Option<&HeaderValue>) -> Result<(Arc<Target>, FrontendKind), Outcome> {
        let local = self.downstream.local;
        let frontend = table.frontend(local, Transport::Tcp).ok_or(Outcome::UnknownName)?;
        if let Some(target) = &frontend.target {
            // An address may go to another Service while connections to it are open; those with TLS were promised one
            // Service, and may not end at another.
            if self.certified.as_ref().is_some_and(|certified| certified.service != target.service) {
                return Err(Outcome::Misdirected);
            }
            return Ok((target.clone(), frontend.kind));
        }
        let authority = authority.and_then(|value| value.to_str().ok()).ok_or(Outcome::UnknownName)?;
        let asking = table.workloads.get(&self.downstream.client.ip());
        let namespace = asking.map_or("default", |workload| &*workload.pod.namespace);
        Ok((table.names.resolve(authority, namespace, local.port())?.clone(), frontend.kind))
    }

    /// What this client may be sent to.
    fn candidates<'a>(&self, table: &Table, target: &'a Target, kind: FrontendKind) -> Result<&'a Candidates, Outcome> {
        let client = self.downstream.client.ip();
        target.verdict(kind, client, || table.client_kind(client)).candidates()
    }

    /// The same port of the same Service, by the table of this moment; `None` if it is gone or speaks something else.
    fn newer(&self, target: &Target, authority: &HeaderValue) -> Option<(Arc<Target>, FrontendKind)> {
        let (newer, kind) = self.resolve(&self.local.table().0, Some(authority)).ok()?;
        let same = (&newer.service, newer.port, newer.protocol) == (&target.service, target.port, target.protocol);
        same.then_some((newer, kind))
    }

    /// As [`Session::newer`], if it has an endpoint that was not tried.
    fn untried(
        &self,
        target: &Target,
        authority: &HeaderValue,
        tried: &[SocketAddr],
    ) -> Option<(Arc<Target>, FrontendKind)> {
        let (newer, kind) = self.newer(target, authority)?;
        let candidates = self.candidates(&self.local.table().0, &newer, kind);
        let has = candidates.is_ok_and(|candidates| candidates.has_other(tried));
        has.then_some((newer, kind))
    }
}

/// Forwards a request and gives the answer, which may be one of our own. `upgrading` says that the client asks for another
/// protocol. `interim` gets informational answers. `alarm` is used while the answer is awaited.
pub async fn forward(
    session: &Session,
    request: Request<RequestBody>,
    upgrading: bool,
    alarm: &Alarm,
    interim: impl FnMut(&ResponseHead),
) -> Reply {
    let Session { local, downstream, trusted, .. } = session;
    let (parent, link) = trace::continue_or_restart(request.headers(), *trusted);
    let open = local.reporter.request(downstream.clone(), &request, parent);
    let mut account = Account::new(local.clone(), open, request.body().progress());
    let client = headers::client(request.headers(), downstream.client, downstream.client_source, |address| {
        local.trusts(address)
    });
    let mut grpc = false;
    account.note(|record| {
        (record.client, record.client_source) = (client.address, client.source);
        record.untrusted_chain = client.untrusted_chain;
        record.link = link;
        grpc = record.grpc;
    });
    if request.headers().len() > local.limits.headers {
        return Reply::own(account, Outcome::HeaderTooLarge, grpc);
    }
    if request.method() == Method::CONNECT {
        let outcome = Outcome::Malformed("CONNECT is not served; use the protocol of the endpoint");
        return Reply::own(account, outcome, grpc);
    }
    let authority = match authority(&request, downstream.local) {
        Ok(authority) => authority,
        Err(outcome) => return Reply::own(account, outcome, grpc),
    };
    let table = local.table();
    let (target, kind) = match session.resolve(&table.0, Some(&authority)) {
        Ok(found) => found,
        Err(outcome) => return Reply::own(account, outcome, grpc),
    };
    account.note(|record| record.target = Some(target.clone()));
    let (mut parts, body) = request.into_parts();
    headers::strip_request(&mut parts.headers, upgrading && target.protocol == AppProtocol::Http);
    let forwarded =
        Forwarded { peer: &session.forwarded_for, trusted: *trusted, tls: downstream.tls, authority: Some(&authority) };
    headers::forward(&mut parts.headers, forwarded);
    let candidates = match session.candidates(&table.0, &target, kind) {
        Ok(candidates) => candidates,
        Err(outcome) => return Reply::own(account, outcome, grpc),
    };
    let address = downstream.client.ip();
    let hash = match target.affinity {
        // Whatever headers say (S8.6).
        Some(_) => FlowHash::of_client(address),
        None => flow_hash(&target.balance, &parts, client.address.ip()),
    };
    let client = Client { address, hash };
    let exchange =
        Exchange { session, alarm, account, parts, target: target.clone(), grpc, attempt: SpanContext::default() };
    exchange.run(candidates, client, authority, body, interim).await
}

/// The authority of a request. That of the target wins over Host (RFC 9112 section 3.2.2).
fn authority<B>(request: &Request<B>, dialled: SocketAddr) -> Result<HeaderValue, Outcome> {
    if let Some(authority) = request.uri().authority() {
        // A user name in front of the host is not part of it, and some servers take it for the host.
        let value = HeaderValue::from_str(authority.as_str()).ok().filter(|_| !authority.as_str().contains('@'));
        return value.ok_or(Outcome::Malformed("the authority is not a name with an optional port"));
    }
    match request.headers().get(header::HOST) {
        Some(host) => Ok(host.clone()),
        // HTTP/1.0 may leave it out; endpoints get what was dialled.
        None if request.version() == Version::HTTP_10 => {
            let value = HeaderValue::try_from(dialled.to_string());
            value.map_err(|_| Outcome::Malformed("the request names no authority"))
        }
        None => Err(Outcome::Malformed("the request names no authority")),
    }
}

fn flow_hash(balance: &Balance, parts: &Parts, client: IpAddr) -> FlowHash {
    let Balance::Hash(key) = balance else { return FlowHash(0) };
    let value = match key {
        HashKey::Client => None,
        HashKey::Header(name) => parts.headers.get(name).map(HeaderValue::as_bytes),
        HashKey::Cookie(name) => headers::cookie(&parts.headers, name),
    };
    value.map_or_else(|| FlowHash::of_client(client), FlowHash::of_bytes)
}

// === impl Exchange ===

impl Exchange<'_> {
    /// Tries endpoints until one answers, none is left or comes, or what was sent cannot be sent again.
    async fn run(
        mut self,
        candidates: &Candidates,
        client: Client,
        authority: HeaderValue,
        mut body: RequestBody,
        mut interim: impl FnMut(&ResponseHead),
    ) -> Reply {
        let local = &self.session.local;
        let http2 = match self.target.protocol {
            AppProtocol::Http => false,
            AppProtocol::Http2 | AppProtocol::Grpc => true,
            AppProtocol::Opaque | AppProtocol::Tls => return self.fail(Outcome::UnknownPort),
        };
        if !http2 {
            self.address_for_http1(&authority);
        } else if let Err(outcome) = self.address_for_http2(&authority) {
            return self.fail(outcome);
        }
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut last = Outcome::NoEndpoints;
        // An old connection that turns out to be dead is not held against its endpoint.
        let mut stale = 0;
        let mut newer: Option<(Arc<Target>, FrontendKind)> = None;
        let mut limit = local.limits.attempts.max(1);
        loop {
            let (target, candidates) = match &newer {
                None => (&self.target, Ok(candidates)),
                Some((target, kind)) => (target, self.session.candidates(&local.table().0, target, *kind)),
            };
            let backend = candidates.ok().and_then(|candidates| local.choose(target, candidates, client, &tried));
            let Some(backend) = backend else {
                // All have refused, as the Pods of a rollout do that ends; those that replace them may be known in a moment.
                let untried = || self.session.untried(&self.target, &authority, &tried);
                let Some(next) = local.replaced(&tried, untried).await else { break };
                (newer, limit) = (Some(next), tried.len() + local.limits.attempts);
                continue;
            };
            if tried.len() >= limit {
                break;
            }
            let upstream = local.upstream(backend.address);
            self.begin(backend, &upstream);
            let attempt = if http2 {
                self.attempt_http2(&upstream, backend, body, &mut interim).await
            } else {
                self.attempt_http1(&upstream, backend, body, stale == 0, &mut interim).await
            };
            let failed = match attempt {
                Ok(reply) => return reply,
                Err(failed) => failed,
            };
            last = failed.outcome;
            self.end_attempt(last);
            if last.is_before_send() {
                upstream.failed(local.now());
            }
            let Some(again) = failed.again else { break };
            body = again;
            if failed.stale && stale == 0 {
                stale += 1;
            } else {
                tried.push(backend.address);
            }
            // The attempt may have taken seconds, in which the endpoints of a rollout are replaced.
            newer = self.session.newer(&self.target, &authority);
        }
        self.fail(last)
    }

    /// Answers ourselves.
    fn fail(self, outcome: Outcome) -> Reply {
        Reply::own(self.account, outcome, self.grpc)
    }

    /// Opens the span of an attempt and puts it into the request.
    fn begin(&mut self, backend: &Arc<Backend>, upstream: &Rc<Upstream>) {
        let local = &self.session.local;
        let traces = &local.reporter.traces;
        let span = traces.span();
        let mut context = Default::default();
        self.account.busy = Some(upstream.busy());
        self.account.note(|record| {
            context = record.trace;
            let started = if record.attempts.is_empty() { record.started } else { Instant::now() };
            record.attempts.push(Attempt {
                backend: backend.clone(),
                started,
                connected: None,
                reused: false,
                via: Via::Direct,
                took: Default::default(),
                status: None,
                outcome: Outcome::Dropped,
                span,
            });
        });
        self.attempt = SpanContext { span, ..context };
        traces.inject(&mut self.parts.headers, context, span, self.session.trusted);
    }

    fn note_attempt(&mut self, fill: impl FnOnce(&mut Attempt)) {
        self.account.note(|record| {
            if let Some(attempt) = record.attempts.last_mut() {
                fill(attempt);
            }
        });
    }

    fn end_attempt(&mut self, outcome: Outcome) {
        self.note_attempt(|attempt| {
            attempt.took = attempt.started.elapsed();
            attempt.outcome = outcome;
        });
    }

    /// The head of an answer came.
    fn answered(&mut self, status: u16) {
        self.account.note(|record| {
            let took = record.started.elapsed();
            record.first_byte = Some(took);
            record.status = status;
            if let Some(attempt) = record.attempts.last_mut() {
                attempt.status = Some(status);
            }
        });
    }

    /// Gives up waiting for an answer when the alarm has rung and the request has not moved since it was set.
    fn poll_overdue(&self, cx: &mut Context<'_>, moved: &mut u64) -> Poll<()> {
        while self.alarm.poll(cx).is_ready() {
            let now = self.account.upload.as_ref().map_or(0, |upload| upload.get());
            if now == *moved {
                return Poll::Ready(());
            }
            *moved = now;
            self.set_alarm();
        }
        Poll::Pending
    }

    fn set_alarm(&self) {
        let local = &self.session.local;
        // A stream of gRPC may be silent for as long as its client waits; calls carry deadlines of their own.
        self.alarm.set((!self.grpc).then(|| local.now() + local.limits.response_timeout));
    }

    /// One attempt over HTTP/1.1.
    async fn attempt_http1(
        &mut self,
        upstream: &Rc<Upstream>,
        backend: &Backend,
        body: RequestBody,
        may_reuse: bool,
        interim: &mut impl FnMut(&ResponseHead),
    ) -> Result<Reply, Failed> {
        let local = &self.session.local;
        let careful = !retry::is_idempotent(&self.parts.method);
        let way = self.way(backend);
        let pooled = if may_reuse { upstream.pool.take(way, local.now(), careful) } else { None };
        let mut connection = match pooled {
            Some(connection) => connection,
            None => {
                let (dialed, via) = self.reach(way, backend).await;
                self.note_attempt(|attempt| attempt.via = via);
                match dialed {
                    Ok(stream) => h1::Connection::new(stream, way, via, local.now()),
                    Err(outcome) => return Err(Failed { outcome, again: Some(body), stale: false }),
                }
            }
        };
        let (reused, via) = (connection.is_reused(), connection.via);
        self.note_attempt(|attempt| {
            attempt.connected = Some(if reused { Default::default() } else { attempt.started.elapsed() });
            (attempt.reused, attempt.via) = (reused, via);
        });
        // The length is what frames the body, and is written with it.
        self.parts.headers.remove(header::CONTENT_LENGTH);
        connection.begin(&self.parts.method, &self.parts.uri, &self.parts.headers, body);
        self.set_alarm();
        let mut moved = 0;
        let answer = poll_fn(|cx| {
            let answer = connection.poll_answer(cx, &local.buffers, &self.parts.method, &mut *interim);
            if answer.is_pending() && self.poll_overdue(cx, &mut moved).is_ready() {
                let late = connection.awaits_client();
                let outcome = if late { Outcome::IdleTimeout } else { Outcome::UpstreamTimeout };
                return Poll::Ready(Err(h1::NoAnswer { outcome, silent: true }));
            }
            answer
        })
        .await;
        match answer {
            Ok(head) => self.accept(head, connection, upstream),
            Err(failure) => {
                let body = connection.take_upload();
                let again = retry::may_repeat(&self.parts.method, &body, &failure).then_some(body);
                Err(Failed { outcome: failure.outcome, again, stale: reused })
            }
        }
    }

    /// The way to an endpoint.
    fn way(&self, backend: &Backend) -> Way {
        let Session { local, downstream, .. } = self.session;
        local.way(&self.target, downstream.frontend, downstream.peer, backend)
    }

    /// A new connection for the attempt that is noted last, and how it was made.
    async fn reach(&self, way: Way, backend: &Backend) -> (Result<TcpStream, Outcome>, Via) {
        let Session { local, downstream, .. } = self.session;
        let call = Call { downstream, target: &self.target, backend, attempt: self.attempt };
        let reached = reach(local, way, call).await;
        if let Ok(stream) = &reached.0 {
            give_up_after(stream, local.limits.upstream_user_timeout);
        }
        reached
    }

    /// Takes over the head of an answer.
    fn accept(
        &mut self,
        head: ResponseHead,
        connection: Box<h1::Connection>,
        upstream: &Rc<Upstream>,
    ) -> Result<Reply, Failed> {
        upstream.succeeded();
        self.answered(head.status.as_u16());
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody may be switched to a protocol that he did not ask for.
            let asked = self.parts.headers.contains_key(header::UPGRADE);
            let upgrade = head.fields.get_hop("upgrade").and_then(|value| HeaderValue::from_bytes(value).ok());
            let Some(upgrade) = upgrade.filter(|_| asked) else {
                return Err(Failed { outcome: Outcome::UpstreamProtocol, again: None, stale: false });
            };
            response.headers_mut().insert(header::UPGRADE, upgrade);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let grpc_status = if self.grpc { head.fields.get("grpc-status").and_then(answer::parse_status) } else { None };
        let account = self.account.take().with_status(grpc_status);
        Ok(Reply::http1(account, response, head.fields, connection, upstream.clone(), &self.session.local))
    }

    /// One attempt over HTTP/2.
    async fn attempt_http2(
        &mut self,
        upstream: &Rc<Upstream>,
        backend: &Backend,
        body: RequestBody,
        interim: &mut impl FnMut(&ResponseHead),
    ) -> Result<Reply, Failed> {
        let local = &self.session.local;
        let way = self.way(backend);
        let connections = upstream.pool.http2(way);
        let stream = match connections.stream(|| self.reach(way, backend), local.now()).await {
            Ok(stream) => stream,
            Err((outcome, via)) => {
                self.note_attempt(|attempt| attempt.via = via);
                return Err(Failed { outcome, again: Some(body), stale: false });
            }
        };
        self.note_attempt(|attempt| {
            attempt.connected = Some(if stream.reused { Default::default() } else { attempt.started.elapsed() });
            (attempt.reused, attempt.via) = (stream.reused, stream.via());
        });
        // Informational answers do not come through the client of HTTP/2, so the body is asked for here.
        if self.parts.headers.remove(header::EXPECT).is_some() {
            interim(&ResponseHead {
                status: StatusCode::CONTINUE,
                fields: Fields::default(),
                framing: Framing::Empty,
                persists: true,
            });
        }
        let mut request = Request::new(());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        // The codec keeps them until they are written, and the request may have to be repeated.
        *request.headers_mut() = self.parts.headers.clone();
        *request.version_mut() = Version::HTTP_2;
        self.set_alarm();
        let stale = stream.reused;
        let mut flight = match Flight::begin(stream, request, body) {
            Ok(flight) => Box::new(flight),
            Err(refused) => {
                let (unanswered, body) = *refused;
                let ended = unanswered.said.is_some_and(|error| error.is_io() || error.is_go_away());
                return Err(Failed { outcome: unanswered.outcome, again: ended.then_some(body), stale });
            }
        };
        let mut moved = 0;
        let answer = poll_fn(|cx| {
            let answer = flight.poll_head(cx);
            if answer.is_pending() && self.poll_overdue(cx, &mut moved).is_ready() {
                return Poll::Ready(Err(Outcome::UpstreamTimeout.into()));
            }
            answer
        });
        match answer.await {
            Ok(response) => {
                upstream.succeeded();
                self.answered(response.status().as_u16());
                Ok(Reply::http2(self.account.take(), response, flight, local))
            }
            Err(Unanswered { outcome, said }) => {
                let repeats = said.is_some_and(|error| retry::may_repeat_stream(&self.parts.method, &error));
                let again = if repeats { flight.into_upload() } else { None };
                Err(Failed { outcome, again, stale })
            }
        }
    }

    /// Has Host say what was asked for, which it may not have.
    fn address_for_http1(&mut self, authority: &HeaderValue) {
        if self.parts.uri.authority().is_some() || self.parts.version == Version::HTTP_10 {
            self.parts.headers.insert(header::HOST, authority.clone());
        }
    }

    /// Turns the target into what HTTP/2 wants: absolute, with the authority in it and not in Host.
    fn address_for_http2(&mut self, authority: &HeaderValue) -> Result<(), Outcome> {
        self.parts.headers.remove(header::HOST);
        if self.parts.uri.authority().is_some() {
            return Ok(());
        }
        const REFUSED: Outcome = Outcome::Malformed("Host is not a name with an optional port");
        let mut parts = std::mem::take(&mut self.parts.uri).into_parts();
        parts.scheme = Some(uri::Scheme::HTTP);
        parts.authority = Some(uri::Authority::try_from(authority.as_bytes()).map_err(|_| REFUSED)?);
        parts.path_and_query.get_or_insert_with(|| uri::PathAndQuery::from_static("/"));
        self.parts.uri = Uri::from_parts(parts).map_err(|_| REFUSED)?;
        Ok(())
    }
}
