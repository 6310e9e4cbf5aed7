use std::time::Duration;

use super::*;

const NAME: &str = "portico.health.v1.NodeHealthService";

/// Far more than anything takes here; a test that waits for it has failed.
const LIMIT: Duration = Duration::from_secs(20);

fn health(store: &Store) -> (GrpcHealth, drain::Trigger) {
    let (trigger, drain) = drain::channel();
    (GrpcHealth::new([NAME], store, drain), trigger)
}

fn asking(service: &str) -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest { service: service.to_owned() })
}

type Watch = BoxStream<'static, Result<HealthCheckResponse, Status>>;

/// The next status; `None` at the end of the stream.
async fn next(watch: &mut Watch) -> Option<ServingStatus> {
    let next = tokio::time::timeout(LIMIT, watch.next()).await.expect("something happens soon");
    next.map(|response| response.expect("a status").status())
}

async fn watch(health: &GrpcHealth, service: &str) -> Watch {
    health.watch(asking(service)).await.expect("a watch is never refused").into_inner()
}

#[tokio::test]
async fn the_status_follows_the_first_listing_and_the_drain() {
    let store = Store::new();
    let (health, trigger) = health(&store);
    let mut watches = [watch(&health, "").await, watch(&health, NAME).await];
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(ServingStatus::NotServing));
    }
    store.commit([]);
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(ServingStatus::Serving));
    }
    assert_eq!(health.check(asking(NAME)).await.unwrap().into_inner().status(), ServingStatus::Serving);
    trigger.start();
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(ServingStatus::NotServing));
        assert_eq!(next(watch).await, None, "a watch must not hold up the drain");
    }
    assert_eq!(health.check(asking("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_drain_before_the_first_listing_ends_watches_without_another_word() {
    let store = Store::new();
    let (health, trigger) = health(&store);
    let mut watch = watch(&health, NAME).await;
    assert_eq!(next(&mut watch).await, Some(ServingStatus::NotServing));
    trigger.start();
    assert_eq!(next(&mut watch).await, None);
}

#[tokio::test]
async fn an_unknown_name_is_refused_by_check_and_kept_by_watch() {
    let store = Store::new();
    let (health, trigger) = health(&store);
    assert_eq!(health.check(asking("none")).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut watch = watch(&health, "none").await;
    assert_eq!(next(&mut watch).await, Some(ServingStatus::ServiceUnknown));
    assert!(futures::poll!(watch.next()).is_pending(), "the watch stays open");
    trigger.start();
    assert_eq!(next(&mut watch).await, None);
}

#[tokio::test]
async fn a_list_names_everything_that_is_served() {
    let store = Store::new();
    store.commit([]);
    let (health, _trigger) = health(&store);
    let statuses = health.list(Request::new(HealthListRequest {})).await.unwrap().into_inner().statuses;
    let mut names: Vec<&str> = statuses.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["", NAME]);
    assert!(statuses.values().all(|response| response.status() == ServingStatus::Serving));
}
