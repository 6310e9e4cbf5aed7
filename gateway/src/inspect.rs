//! What people ask a gateway with `portico get`. Everything is read from where it is kept anyway.

use std::sync::Arc;

use api::proto::inspect::{
    ListObjectsRequest, ListObjectsResponse, ObjectKind, WatchObjectsRequest, WatchObjectsResponse,
    inspect_service_server::{InspectService, InspectServiceServer},
};
use runtime::drain;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{catalog::Catalog, health::Health, snapshot::store::Store, stream::nodes::Nodes};

pub mod scene;
pub mod problems;
pub mod follow;

use scene::{Filter, Scene};

/// The most bytes of one answer: the endpoints of a large cluster come in one message.
const MESSAGE: usize = 256 << 20;

/// Where everything is kept. Clones share it.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Services, endpoints and nodes.
    pub store: Arc<Store>,
    /// Who is connected.
    pub nodes: Arc<Nodes>,
    /// Problems and creation times.
    pub catalog: watch::Receiver<Catalog>,
    /// Verdicts and reports.
    pub health: Health,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Inspect {
    sources: Sources,
    drain: drain::Watch,
}

// === impl Inspect ===

impl Inspect {
    /// Shows what is in `sources`; watches end when the drain starts.
    pub fn new(sources: Sources, drain: drain::Watch) -> Self {
        Self { sources, drain }
    }

    /// To be added to a server.
    pub fn server(self) -> InspectServiceServer<Self> {
        InspectServiceServer::new(self).max_encoding_message_size(MESSAGE)
    }
}

fn filter(kind: i32, namespace: String, name: String) -> Result<Filter, Status> {
    match ObjectKind::try_from(kind) {
        Ok(ObjectKind::Unspecified) | Err(_) => {
            Err(Status::invalid_argument(format!("kind: {kind} is not a kind that can be listed")))
        }
        Ok(kind) => Ok(Filter { kind, namespace, name }),
    }
}

#[tonic::async_trait]
impl InspectService for Inspect {
    type WatchObjectsStream = ReceiverStream<Result<WatchObjectsResponse, Status>>;

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        let ListObjectsRequest { kind, namespace, name } = request.into_inner();
        let filter = filter(kind, namespace, name)?;
        if !self.sources.store.read().is_committed() {
            return Err(Status::unavailable("the objects of the cluster were not listed yet"));
        }
        let scene = Scene::of(&self.sources, filter.kind);
        let rows = scene.rows(&self.sources.store, &filter);
        let problems = problems::without_row(&scene.catalog, &filter, &self.sources.store);
        let objects = rows.into_iter().filter_map(|(name, body)| scene.object(filter.kind, &name, body)).collect();
        Ok(Response::new(ListObjectsResponse { objects, problems }))
    }

    async fn watch_objects(
        &self,
        request: Request<WatchObjectsRequest>,
    ) -> Result<Response<Self::WatchObjectsStream>, Status> {
        let WatchObjectsRequest { kind, namespace, name } = request.into_inner();
        let filter = filter(kind, namespace, name)?;
        Ok(Response::new(follow::start(self.sources.clone(), filter, self.drain.clone())))
    }
}

#[cfg(test)]
mod tests;
