//! The gRPC face: EchoService, grpc.health.v1 and reflection.

use super::body::Body;
use super::seen::{Connection, Identity};
use super::tasks::Tasks;
use api::proto::echo::echo_service_server::{EchoService, EchoServiceServer};
use api::proto::echo::{EchoRequest, EchoResponse, EchoStreamRequest, EchoStreamResponse, Header};
use api::proto::grpc_health::health_check_response::ServingStatus;
use api::proto::grpc_health::health_server::{Health, HealthServer};
use api::proto::grpc_health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use futures::stream::{BoxStream, StreamExt};
use http::{HeaderMap, Version, header::CONTENT_TYPE};
use hyper::body::Incoming;
use runtime::drain;
use std::sync::Arc;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

const ECHO: &str = "portico.echo.v1.EchoService";
const HEALTH: &str = "grpc.health.v1.Health";

/// The services, ready to be called by any connection. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Rpc {
    routes: Routes,
}

impl Rpc {
    /// The services of one backend; they report "not serving" once its drain has started.
    ///
    /// # Errors
    /// If the descriptors built into the binary cannot be read, which reflection needs.
    pub fn new(tasks: &Tasks) -> Result<Self, tonic_reflection::server::Error> {
        // The descriptors are those of the whole product; a backend serves two of its services.
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(api::proto::FILE_DESCRIPTOR_SET)
                .with_service_name(ECHO)
                .with_service_name(HEALTH)
        };
        let routes = Routes::new(EchoServiceServer::new(Calls))
            .add_service(HealthServer::new(Checks { drain: tasks.drain() }))
            .add_service(reflection().build_v1()?)
            // Many clients still ask for the version before that only.
            .add_service(reflection().build_v1alpha()?);
        Ok(Rpc { routes: routes.prepare() })
    }

    /// Answers a request for which [`is_asked`] holds.
    pub async fn answer(
        &self,
        connection: &Arc<Connection>,
        mut request: http::Request<Incoming>,
    ) -> http::Response<Body> {
        request.extensions_mut().insert(connection.clone());
        match self.routes.clone().call(request).await {
            Ok(response) => response.map(Body::Rpc),
            Err(never) => match never {},
        }
    }
}

/// Whether the request is a gRPC call: HTTP/2 with its content type, whatever the message format after `+`.
pub fn is_asked<B>(request: &http::Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    request.version() == Version::HTTP_2
        && matches!(content_type.strip_prefix(b"application/grpc"), Some([] | [b'+' | b';', ..]))
}

struct Calls;

#[tonic::async_trait]
impl EchoService for Calls {
    type EchoStreamStream = BoxStream<'static, Result<EchoStreamResponse, Status>>;

    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let connection = connection(request.extensions())?;
        let (metadata, _, EchoRequest { payload }) = request.into_parts();
        let headers = metadata.into_headers();
        let Identity { pod, node, .. } = connection.identity.as_ref().clone();
        let (client, _) = connection.client(Some(&headers));
        Ok(Response::new(EchoResponse {
            payload,
            pod,
            node,
            peer: connection.peer.to_string(),
            client: client.to_string(),
            headers: entries(&headers),
        }))
    }

    async fn echo_stream(
        &self,
        request: Request<Streaming<EchoStreamRequest>>,
    ) -> Result<Response<Self::EchoStreamStream>, Status> {
        let connection = connection(request.extensions())?;
        let answers = request.into_inner().map(move |message| {
            let EchoStreamRequest { payload } = message?;
            Ok(EchoStreamResponse { payload, pod: connection.identity.pod.clone() })
        });
        Ok(Response::new(answers.boxed()))
    }
}

fn connection(extensions: &http::Extensions) -> Result<Arc<Connection>, Status> {
    extensions.get().cloned().ok_or_else(|| Status::internal("the call carries no connection"))
}

fn entries(headers: &HeaderMap) -> Vec<Header> {
    let entry = |(name, value): (&http::HeaderName, &http::HeaderValue)| Header {
        name: name.to_string(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    headers.iter().map(entry).collect()
}

struct Checks {
    drain: drain::Watch,
}

impl Checks {
    /// The status of a service, if there is one of that name. The empty name stands for the process.
    fn status(&self, service: &str) -> Option<ServingStatus> {
        match service {
            "" | ECHO if self.drain.is_draining() => Some(ServingStatus::NotServing),
            "" | ECHO => Some(ServingStatus::Serving),
            _ => None,
        }
    }
}

#[tonic::async_trait]
impl Health for Checks {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let HealthCheckRequest { service } = request.into_inner();
        match self.status(&service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found(format!("service {service:?} is unknown here"))),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let status = |name: &str| {
            let status = self.status(name)?;
            Some((name.to_owned(), HealthCheckResponse { status: status.into() }))
        };
        Ok(Response::new(HealthListResponse { statuses: ["", ECHO].into_iter().filter_map(status).collect() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let answer = |status: ServingStatus| Ok(HealthCheckResponse { status: status.into() });
        // An unknown service is answered with an open stream, in case it appears later (health.proto).
        let first = self.status(&request.into_inner().service).unwrap_or(ServingStatus::ServiceUnknown);
        let mut drain = self.drain.clone();
        let last = async move {
            drain.started().await;
            (first == ServingStatus::Serving).then(|| answer(ServingStatus::NotServing))
        };
        let last = futures::stream::once(last).filter_map(std::future::ready);
        // The stream ends with the drain: the process is about to.
        Ok(Response::new(futures::stream::once(std::future::ready(answer(first))).chain(last).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_other_requests() {
        let cases = [
            (Version::HTTP_2, "application/grpc", true),
            (Version::HTTP_2, "application/grpc+proto", true),
            (Version::HTTP_2, "application/grpc;x=y", true),
            (Version::HTTP_2, "application/grpc-web", false),
            (Version::HTTP_2, "application/json", false),
            (Version::HTTP_11, "application/grpc", false),
        ];
        for (version, content_type, asked) in cases {
            let request =
                http::Request::post("/").version(version).header(CONTENT_TYPE, content_type).body(()).unwrap();
            assert_eq!(is_asked(&request), asked, "{version:?} {content_type}");
        }
    }

    #[tokio::test]
    async fn health_follows_the_drain() {
        let (trigger, drain) = drain::channel();
        let checks = Checks { drain };
        let ask = |service: &str| Request::new(HealthCheckRequest { service: service.into() });
        let mut watched = checks.watch(ask(ECHO)).await.unwrap().into_inner();
        let mut unknown = checks.watch(ask("x.Y")).await.unwrap().into_inner();
        assert_eq!(checks.check(ask("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
        assert_eq!(checks.check(ask("x.Y")).await.unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        assert_eq!(unknown.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        trigger.start();
        assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watched.next().await.is_none());
        assert!(unknown.next().await.is_none());
        assert_eq!(checks.check(ask(ECHO)).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    }
}
