//! grpc.health.v1, as gRPC clients and probes ask it. Our own, since it must list what it knows, and a watch on a name that
//! is unknown must stay open.

use std::sync::Arc;

use api::proto::grpc_health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use futures::stream::{BoxStream, StreamExt as _};
use runtime::drain;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::snapshot::store::Store;

/// Answers for one port. The empty name stands for the process.
#[derive(Clone, Debug)]
pub struct GrpcHealth {
    services: Arc<[&'static str]>,
    revisions: watch::Receiver<u64>,
    drain: drain::Watch,
}

// === impl GrpcHealth ===

impl GrpcHealth {
    /// The health of `services`, named as `portico.health.v1.NodeHealthService` is. They serve once there is something
    /// in the store, and until the drain starts.
    pub fn new(services: impl IntoIterator<Item = &'static str>, store: &Store, drain: drain::Watch) -> Self {
        let services = std::iter::once("").chain(services).collect();
        Self { services, revisions: store.revisions(), drain }
    }

    /// To be added to a server.
    pub fn server(self) -> HealthServer<Self> {
        HealthServer::new(self)
    }

    fn status(&self) -> ServingStatus {
        match *self.revisions.borrow() > 0 && !self.drain.is_draining() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }

    fn is_served(&self, name: &str) -> bool {
        self.services.contains(&name)
    }

    /// Completes when the status may be another one.
    async fn changed(&mut self) {
        if self.status() == ServingStatus::Serving {
            return self.drain.started().await;
        }
        let listed = tokio::select! {
            listed = self.revisions.wait_for(|revision| *revision > 0) => listed.is_ok(),
            () = self.drain.started() => true,
        };
        if !listed {
            self.drain.started().await;
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for GrpcHealth {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        match self.is_served(&name) {
            true => Ok(Response::new(response(self.status()))),
            false => Err(Status::not_found(format!("service {name:?} is not served here"))),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let status = response(self.status());
        let statuses = self.services.iter().map(|name| ((*name).to_owned(), status)).collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        // A watch ends with the drain, which it would hold up otherwise. The last thing it hears is why.
        if !self.is_served(&name) {
            let mut drain = self.drain.clone();
            let unknown = futures::stream::iter([Ok(response(ServingStatus::ServiceUnknown))]);
            let open = futures::stream::once(async move { drain.started().await }).filter_map(|()| async { None });
            return Ok(Response::new(unknown.chain(open).boxed()));
        }
        let told = futures::stream::unfold((self.clone(), None), |(mut this, last)| async move {
            loop {
                let status = this.status();
                if last != Some(status) {
                    return Some((Ok(response(status)), (this, Some(status))));
                }
                if this.drain.is_draining() {
                    return None;
                }
                this.changed().await;
            }
        });
        Ok(Response::new(told.boxed()))
    }
}

#[cfg(test)]
mod tests;
