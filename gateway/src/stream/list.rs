//! Pages of resources, for tools and audits.

use api::{
    delta::frame::View,
    proto::discovery::{Commit, ListResourcesRequest, ListResourcesResponse},
    resource::Kind,
};
use tonic::Status;

use crate::snapshot::store::State;

/// Resources on a page when the request does not say.
const PAGE: usize = 500;

/// Resources on a page at most.
const MAX_PAGE: usize = 5_000;

/// The page that a request asks for. Tokens hold the revision, so pages of different states are never mixed.
///
/// # Errors
/// `INVALID_ARGUMENT`, `ABORTED` when the state changed between two pages, `UNAVAILABLE` before the first commit.
pub fn page(state: &State, request: &ListResourcesRequest) -> Result<ListResourcesResponse, Status> {
    if !state.is_committed() {
        return Err(Status::unavailable("nothing was listed yet"));
    }
    let kind = Kind::from_wire(request.r#type).ok_or_else(|| {
        Status::invalid_argument("type: give one of the RESOURCE_TYPE values that this release serves")
    })?;
    let size = match usize::try_from(request.page_size) {
        Ok(0) => PAGE,
        Ok(size) => size.min(MAX_PAGE),
        Err(_) => return Err(Status::invalid_argument("page_size: is negative")),
    };
    let start = start(&request.page_token, state.revision())?;
    let all = state.all(kind);
    // Keys are for agents: what holds some is listed without its body.
    let visible = |encoded: &&api::delta::frame::Encoded| {
        let mut resource = encoded.to_wire();
        if kind.is_secret() {
            resource.body.clear();
        }
        resource
    };
    let next = start.saturating_add(size);
    Ok(ListResourcesResponse {
        resources: all.iter().skip(start).take(size).map(visible).collect(),
        next_page_token: if next < all.len() { format!("{}.{next}", state.revision()) } else { String::new() },
        as_of: Some(Commit {
            position: None,
            digests: state.digests().to_wire(Kind::ALL),
            commit_time: Some(state.commit_time().into()),
        }),
    })
}

fn start(token: &str, revision: u64) -> Result<usize, Status> {
    if token.is_empty() {
        return Ok(0);
    }
    let parts = token.split_once('.').and_then(|(at, start)| Some((at.parse::<u64>().ok()?, start.parse().ok()?)));
    match parts {
        Some((at, start)) if at == revision => Ok(start),
        Some(_) => Err(Status::aborted("page_token: the state changed since the first page; list again")),
        None => Err(Status::invalid_argument("page_token: give the next_page_token of the page before, or none")),
    }
}
