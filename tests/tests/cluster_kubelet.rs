//! Containers and networks of Pods as the kubelet makes them, without a cluster. These tests need root.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::kubelet::{
    command,
    network::{self, PodNetwork, Pool},
    process::{Credentials, Launch, Mount, Process},
};
use tokio::time::timeout;

/// Nothing here takes this long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// A container that runs a line of shell, below a directory of the test.
fn container(directory: &Path, line: &str) -> Launch {
    Launch {
        pod: "test".to_owned(),
        directory: directory.join("container"),
        log: directory.join("log"),
        network: None,
        hostname: Some("web-1".to_owned()),
        mounts: Vec::new(),
        privileged: false,
        read_only_root: false,
        credentials: credentials(json!({})),
        working_directory: "/".to_owned(),
        variables: Vec::new(),
        command: ["sh", "-c", line].map(str::to_owned).to_vec(),
    }
}

fn credentials(context: serde_json::Value) -> Credentials {
    let context: SecurityContext = serde_json::from_value(context).expect("a security context");
    Credentials::new(&PodSecurityContext::default(), &context).expect("credentials")
}

async fn start(launch: &Launch) -> Process {
    let started = launch.start().await;
    started.unwrap_or_else(|error| panic!("{error:#}; the log: {:?}", std::fs::read_to_string(&launch.log)))
}

/// Runs a container to its end. Gives its exit code and what it said.
async fn run(launch: &Launch) -> (i32, String) {
    let mut process = start(launch).await;
    let code = timeout(PATIENCE, process.wait()).await.expect("the container ends");
    (code, std::fs::read_to_string(&launch.log).expect("a log"))
}

#[tokio::test]
async fn a_container_has_a_root_a_name_and_processes_of_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let inside =
        "hostname; echo $$; ls -d /.host; touch /etc/written /tmp/written; cat /proc/sys/kernel/hostname; exit 7";
    let (code, said) = run(&container(directory.path(), inside)).await;
    assert_eq!(code, 7, "{said}");
    assert_eq!(said, "web-1\n1\nls: cannot access '/.host': No such file or directory\nweb-1\n");
    assert!(!Path::new("/etc/written").exists(), "what a container writes is its own");
}

#[tokio::test]
async fn a_container_runs_as_it_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let volume = directory.path().join("volume");
    std::fs::create_dir(&volume).expect("a directory");
    std::fs::write(volume.join("file"), "contents").expect("a file");
    let mount = |target: &str, read_only| Mount {
        source: volume.clone(),
        target: target.to_owned(),
        read_only,
        follows_host: false,
    };
    let launch = Launch {
        // Links such as /var/run lead to places of the container, not of the machine.
        mounts: vec![mount("/var/run/secrets/portico", true), mount("/data", false)],
        read_only_root: true,
        working_directory: "/data".to_owned(),
        variables: vec![("COLOUR".to_owned(), "red".to_owned())],
        credentials: credentials(json!({ "runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] } })),
        ..container(
            directory.path(),
            "id -u; id -G; pwd; echo $COLOUR; cat /run/secrets/portico/file; echo; \
             grep -E 'CapBnd|NoNewPrivs' /proc/self/status; touch /written /run/secrets/portico/file 2>/dev/null || echo read-only",
        )
    };
    let (code, said) = run(&launch).await;
    let expected = "65532\n65532\n/data\nred\ncontents\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nread-only\n";
    assert_eq!((code, said.as_str()), (0, expected));
}

#[tokio::test]
async fn commands_run_in_a_container_and_signals_reach_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let launch = container(directory.path(), "trap 'exit 3' TERM; : >/tmp/ready; while :; do sleep 0.05; done");
    let mut process = start(&launch).await;
    let words = ["sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done; hostname"].map(str::to_owned);
    let output = timeout(PATIENCE, process.access().command(&words).output()).await.expect("it ends").expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web-1\n", "{output:?}");
    process.signal(Signal::SIGTERM);
    assert_eq!(timeout(PATIENCE, process.wait()).await.expect("the container ends"), 3);

    let mut deaf = start(&container(directory.path(), "trap '' TERM; while :; do sleep 1; done")).await;
    deaf.signal(Signal::SIGKILL);
    assert_eq!(timeout(PATIENCE, deaf.wait()).await.expect("the container ends"), 137);
}

/// When a kubelet's thread ends, nothing of its containers remains.
#[test]
fn containers_end_with_their_kubelet() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let process = start(&container(&path, "sleep 1000 & sleep 1000")).await;
            let pid = process.access().pid();
            // As when the kubelet is killed: nothing is dropped.
            std::mem::forget(process);
            pid
        })
    });
    let pid = thread.join().expect("the thread ends");
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let begin = std::time::Instant::now();
    while proc.exists() {
        assert!(begin.elapsed() < PATIENCE, "process {pid} still runs");
        std::thread::yield_now();
    }
}

/// A node in a network namespace of its own: Pods reach it and each other, by both families.
#[test]
fn pods_reach_their_node_and_each_other() {
    const NODE: &str = "portico-kubelet-test";
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let _ = command::words(&format!("ip netns del {NODE}")).await;
            command::words(&format!("ip netns add {NODE}")).await.expect("a namespace");
            let file = std::fs::File::open(format!("/run/netns/{NODE}")).expect("the namespace");
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
            let outcome = tokio::spawn(pods_of_a_node()).await;
            command::words(&format!("ip netns del {NODE}")).await.expect("the namespace can be removed");
            outcome.expect("everything is reached");
        });
    });
    thread.join().expect("everything is reached");
}

async fn pods_of_a_node() {
    let settings = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
    for line in [
        "ip link set lo up",
        "ip address add 10.245.9.1/32 dev lo",
        "ip address add fd45:9::1/128 dev lo nodad",
        &format!("sysctl -qw {settings}"),
    ] {
        command::words(line).await.expect(line);
    }
    let node: Vec<IpAddr> = ["10.245.9.1", "fd45:9::1"].map(|ip| ip.parse().expect("an address")).to_vec();
    let pool = Arc::new(Pool::new(&["10.244.9.0/24".to_owned(), "fd44:9::/64".to_owned()]).expect("ranges"));
    let uids = ["aaaaaaaa-test", "bbbbbbbb-test"];
    let one = PodNetwork::create(uids[0], &pool, &node).await.expect("a network");
    let other = PodNetwork::create(uids[1], &pool, &node).await.expect("a network");
    for from in [&one, &other] {
        for to in node.iter().chain(&one.addresses).chain(&other.addresses) {
            // Nobody listens there, and only who is reached can say so.
            let dial = format!("exec 3<>/dev/tcp/{to}/9");
            let dialled =
                command::run("ip", &["netns", "exec", &from.namespace, "timeout", "5", "bash", "-c", &dial]).await;
            let said = format!("{:#}", dialled.expect_err("nobody listens"));
            assert!(said.contains("Connection refused"), "{} to {to}: {said}", from.namespace);
        }
    }
    let names = command::words("ip netns list").await.expect("names");
    assert!(names.contains("portico-pod-aaaaaaaa"), "{names}");
    for uid in uids {
        network::remove(uid).await;
    }
    let names = command::words("ip netns list").await.expect("names");
    assert!(!names.contains("portico-pod-aaaaaaaa") && !names.contains("portico-pod-bbbbbbbb"), "{names}");
}
