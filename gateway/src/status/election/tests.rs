use super::*;
use crate::status::fixture::ApiServer;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/portico-system/leases/portico-gateway";

struct Replica {
    leadership: Leadership,
    drain: Option<drain::Trigger>,
}

fn replica(server: &ApiServer, identity: &str) -> Replica {
    let (election, leadership) =
        Election::new(server.client(), "portico-system", "portico-gateway", identity, Timing::DEFAULT);
    let (trigger, watch) = drain::channel();
    tokio::spawn(election.run(watch));
    Replica { leadership, drain: Some(trigger) }
}

#[tokio::test(start_paused = true)]
async fn the_lease_goes_over_at_once_when_it_is_given_back() {
    let server = ApiServer::new();
    let mut first = replica(&server, "a");
    first.leadership.gained().await;
    let mut second = replica(&server, "b");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(first.leadership.holds() && !second.leadership.holds(), "it is renewed");
    assert_eq!(server.get(LEASE)["spec"]["holderIdentity"], "a");
    assert_eq!(server.get(LEASE)["spec"]["leaseDurationSeconds"], 15);
    let began = Instant::now();
    first.drain.take().expect("runs").drained().await;
    assert!(!first.leadership.holds());
    second.leadership.gained().await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(server.get(LEASE)["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_answered_stops_at_the_deadline_and_drops_what_is_in_flight() {
    let server = ApiServer::new();
    let mut leader = replica(&server, "a");
    leader.leadership.gained().await;
    let in_flight = leader.leadership.guard(std::future::pending::<()>());
    server.answer(false);
    let began = Instant::now();
    assert_eq!(in_flight.await, Err(NotLeader));
    let took = began.elapsed();
    assert!(took <= Timing::DEFAULT.renew_deadline && took > Duration::from_secs(5), "{took:?}");
    assert_eq!(leader.leadership.guard(async { 1 }).await, Err(NotLeader), "nothing is begun any more");
    server.answer(true);
    leader.leadership.gained().await;
    assert_eq!(leader.leadership.guard(async { 1 }).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_stolen_lease_is_lost_with_the_next_renewal() {
    let server = ApiServer::new();
    let mut leader = replica(&server, "a");
    leader.leadership.gained().await;
    let mut lease = server.get(LEASE);
    lease["spec"]["holderIdentity"] = "thief".into();
    server.set(LEASE, lease);
    let began = Instant::now();
    leader.leadership.lost().await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(server.get(LEASE)["spec"]["holderIdentity"], "thief", "nobody takes it back before it expires");
    leader.leadership.gained().await;
    assert!(began.elapsed() >= Timing::DEFAULT.duration, "{:?}", began.elapsed());
}

#[tokio::test]
async fn without_rivals_leadership_is_never_lost() {
    let mut always = Leadership::always();
    always.gained().await;
    assert!(always.holds());
    assert_eq!(always.guard(async { 1 }).await, Ok(1));
}
