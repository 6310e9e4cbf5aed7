//! Signals end a process in two steps: drain, then at once. One test, because signals go to the whole process.

use runtime::shutdown::{self, Ended};
use std::future::Future;
use std::pin::{Pin, pin};
use std::process::Command;
use std::task::{Context, Waker};
use std::time::Duration;

/// Installs the handlers of a future that listens, by polling it once.
fn begin<T>(future: Pin<&mut impl Future<Output = T>>) {
    let poll = future.poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll.is_pending());
}

fn send(name: &str) {
    let pid = std::process::id().to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_first_signal_is_named_and_the_second_cuts_the_drain_short() {
    let mut first = pin!(shutdown::signal());
    begin(first.as_mut());
    send("TERM");
    assert_eq!(first.await, "SIGTERM");

    let (trigger, watch) = runtime::drain::channel();
    let _guard = watch.guard();
    let mut drain = pin!(shutdown::drain(trigger, Duration::from_secs(3600)));
    begin(drain.as_mut());
    assert!(watch.is_draining());
    send("INT");
    assert_eq!(drain.await, Ended::Deadline);
}
