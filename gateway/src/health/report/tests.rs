use api::proto::node::NodeServingState::{Draining, Serving, Starting};
use tonic::Code;

use super::*;
use crate::health::fixture::{TERM, fault, renewal, request, status};

fn reports() -> Arc<Reports> {
    Arc::new(Reports::new(TERM))
}

/// How often something changed, and how often that was news.
fn counts(reports: &Reports) -> (u64, u64) {
    (*reports.changes().borrow(), *reports.news().borrow())
}

#[test]
fn a_renewal_is_news_only_if_the_lease_was_over() {
    let (reports, now) = (reports(), Moment::now());
    let reporter = reports.open(request(status("n1", "a", Serving)), now).unwrap();
    assert_eq!(counts(&reports), (1, 1));
    reporter.report(renewal(), now.after(TERM / 2)).unwrap();
    assert_eq!(counts(&reports), (1, 1));
    assert_eq!(reports.list()["n1"].heard.last(), now.after(TERM / 2), "but it was heard");
    reporter.report(renewal(), now.after(3 * TERM)).unwrap();
    assert_eq!(counts(&reports), (2, 2));
}

#[test]
fn another_state_or_fault_is_news_and_other_content_a_change() {
    let (reports, now) = (reports(), Moment::now());
    let first = status("n1", "a", Serving);
    let reporter = reports.open(request(first.clone()), now).unwrap();
    let heard = reports.list()["n1"].heard.clone();
    reporter.report(request(NodeStatus { open_listeners: 3, ..first.clone() }), now).unwrap();
    assert_eq!(counts(&reports), (2, 1));
    assert!(Arc::ptr_eq(&heard, &reports.list()["n1"].heard));
    reporter.report(request(NodeStatus { faults: vec![fault("web", "PORT_IN_USE")], ..first }), now).unwrap();
    assert_eq!(counts(&reports), (3, 2));
    reporter.report(request(status("n1", "a", Draining)), now.after(TERM / 3)).unwrap();
    assert_eq!(counts(&reports), (4, 3));
    assert_eq!(heard.last(), now, "what was judged before was last true before");
}

#[test]
fn a_newer_instance_takes_over_and_the_old_one_cannot_come_back() {
    let (reports, now) = (reports(), Moment::now());
    let old = reports.open(request(status("n1", "old", Draining)), now).unwrap();
    let new = reports.open(request(status("n1", "new", Starting)), now).unwrap();
    assert_eq!(reports.list()["n1"].status.instance_id, "new");
    assert_eq!(old.report(renewal(), now).unwrap_err().code(), Code::Aborted);
    assert_eq!(reports.open(request(status("n1", "old", Serving)), now).unwrap_err().code(), Code::Aborted);
    drop(old);
    assert!(reports.list()["n1"].reporting, "the end of the old stream says nothing of the new one");
    new.report(renewal(), now).unwrap();
    drop(new);
    assert!(!reports.list()["n1"].reporting);
    assert_eq!(reports.list()["n1"].status.state(), Starting, "the last word stands");
}

#[tokio::test]
async fn the_same_instance_may_open_its_stream_anew() {
    let (reports, now) = (reports(), Moment::now());
    let first = reports.open(request(status("n1", "a", Serving)), now).unwrap();
    let second = reports.open(request(status("n1", "a", Serving)), now).unwrap();
    assert_eq!(first.replaced().await.code(), Code::Aborted);
    assert_eq!(first.report(renewal(), now).unwrap_err().code(), Code::Aborted);
    second.report(renewal(), now).unwrap();
}

#[test]
fn reports_that_name_nobody_or_somebody_else_are_refused() {
    let (reports, now) = (reports(), Moment::now());
    for first in [renewal(), request(status("", "a", Serving)), request(status("n1", "", Serving))] {
        assert_eq!(reports.open(first, now).unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(reports.list().is_empty());
    let reporter = reports.open(request(status("n1", "a", Serving)), now).unwrap();
    for other in [status("n2", "a", Serving), status("n1", "b", Serving)] {
        assert_eq!(reporter.report(request(other), now).unwrap_err().code(), Code::InvalidArgument);
    }
}
