//! NodeHealthService: what load balancers ask. Every answer is read off one board.

use std::{sync::Arc, time::SystemTime};

use api::proto::health::{
    Freshness, GetNodeHealthRequest, GetNodeHealthResponse, GetServiceHealthRequest, GetServiceHealthResponse,
    HealthView, ListNodeHealthRequest, ListNodeHealthResponse, ListServiceHealthRequest, ListServiceHealthResponse,
    WatchNodeHealthRequest, WatchNodeHealthResponse, WatchServiceHealthRequest, WatchServiceHealthResponse,
    node_health_service_server::NodeHealthService,
};
use runtime::drain;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{board::Board, judge::Boards};

pub mod query;
pub mod token;
pub mod page;
pub mod cursor;
pub mod watch;

use page::Pages;
use query::{NodeQuery, Query, ServiceQuery};

/// The service.
#[derive(Debug)]
pub struct NodeHealths {
    boards: Boards,
    replica_id: Arc<str>,
    drain: drain::Watch,
    pages: Pages,
}

// === impl NodeHealths ===

impl NodeHealths {
    /// Answers from `boards`; watches end when the drain starts.
    pub fn new(boards: Boards, replica_id: Arc<str>, drain: drain::Watch) -> Self {
        Self { boards, replica_id, drain, pages: Pages::default() }
    }

    fn board(&self) -> Result<Arc<Board>, Status> {
        let board = self.boards.borrow().clone();
        board.ok_or_else(|| Status::unavailable("the objects of the cluster were not listed yet"))
    }

    fn freshness<Q: Query>(&self, board: &Board) -> Freshness {
        freshness::<Q>(board, &self.replica_id)
    }

    fn start<Q: Query>(&self, query: Q, request: watch::Request) -> Response<ReceiverStream<Result<Q::Event, Status>>> {
        let feed = watch::Feed { boards: self.boards.clone(), drain: self.drain.clone() };
        Response::new(watch::start(query, request, self.replica_id.clone(), feed))
    }
}

/// How far what is on `board` can be trusted now.
fn freshness<Q: Query>(board: &Board, replica_id: &str) -> Freshness {
    Freshness {
        as_of_time: Some(SystemTime::now().into()),
        etag: Q::etag(board).to_owned(),
        replica_id: replica_id.to_owned(),
        degraded: board.degraded,
    }
}

#[tonic::async_trait]
impl NodeHealthService for NodeHealths {
    type WatchNodeHealthStream = ReceiverStream<Result<WatchNodeHealthResponse, Status>>;
    type WatchServiceHealthStream = ReceiverStream<Result<WatchServiceHealthResponse, Status>>;

    async fn get_node_health(
        &self,
        request: Request<GetNodeHealthRequest>,
    ) -> Result<Response<GetNodeHealthResponse>, Status> {
        let name = request.into_inner().name;
        let key = query::node_key(&name)?;
        let board = self.board()?;
        let missing = || match board.nodes.contains_key(key) {
            true => format!("{name:?} is labelled to be left alone by external load balancers"),
            false => format!("{name:?} does not exist"),
        };
        let node = board.node(key).ok_or_else(|| Status::not_found(missing()))?;
        let freshness = Some(self.freshness::<NodeQuery>(&board));
        Ok(Response::new(GetNodeHealthResponse { node: Some(node), freshness }))
    }

    async fn list_node_health(
        &self,
        request: Request<ListNodeHealthRequest>,
    ) -> Result<Response<ListNodeHealthResponse>, Status> {
        let request = request.into_inner();
        let query = NodeQuery::new(request.selector)?;
        let ask = page::Request {
            size: request.page_size,
            token: &request.page_token,
            if_changed_from: &request.if_changed_from,
        };
        let page = self.pages.page(&query, ask, || self.board(), &self.replica_id)?;
        Ok(Response::new(ListNodeHealthResponse {
            freshness: Some(self.freshness::<NodeQuery>(&page.board)),
            nodes: page.items,
            next_page_token: page.next,
            unchanged: page.unchanged,
        }))
    }

    async fn watch_node_health(
        &self,
        request: Request<WatchNodeHealthRequest>,
    ) -> Result<Response<Self::WatchNodeHealthStream>, Status> {
        let request = request.into_inner();
        let query = NodeQuery::new(request.selector)?;
        let request = watch::Request::new(request.resume_token, request.min_interval)?;
        Ok(self.start(query, request))
    }

    async fn get_service_health(
        &self,
        request: Request<GetServiceHealthRequest>,
    ) -> Result<Response<GetServiceHealthResponse>, Status> {
        let name = request.into_inner().name;
        let key = query::service_key(&name)?;
        let board = self.board()?;
        let service = board.service(&key, true).ok_or_else(|| {
            Status::not_found(format!("{name:?} does not exist, or takes no traffic from outside of the cluster"))
        })?;
        let freshness = Some(self.freshness::<ServiceQuery>(&board));
        Ok(Response::new(GetServiceHealthResponse { service: Some(service), freshness }))
    }

    async fn list_service_health(
        &self,
        request: Request<ListServiceHealthRequest>,
    ) -> Result<Response<ListServiceHealthResponse>, Status> {
        let request = request.into_inner();
        let query = ServiceQuery::new(request.selector, request.view, HealthView::Basic)?;
        let ask = page::Request {
            size: request.page_size,
            token: &request.page_token,
            if_changed_from: &request.if_changed_from,
        };
        let page = self.pages.page(&query, ask, || self.board(), &self.replica_id)?;
        Ok(Response::new(ListServiceHealthResponse {
            freshness: Some(self.freshness::<ServiceQuery>(&page.board)),
            services: page.items,
            next_page_token: page.next,
            unchanged: page.unchanged,
        }))
    }

    async fn watch_service_health(
        &self,
        request: Request<WatchServiceHealthRequest>,
    ) -> Result<Response<Self::WatchServiceHealthStream>, Status> {
        let request = request.into_inner();
        let query = ServiceQuery::new(request.selector, request.view, HealthView::Full)?;
        let request = watch::Request::new(request.resume_token, request.min_interval)?;
        Ok(self.start(query, request))
    }
}

#[cfg(test)]
mod tests;
