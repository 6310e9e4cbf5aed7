//! Pods on the sandbox's nodes, as `kubectl` shows them: logs, commands in containers, probes and evictions. These tests
//! need root; `scripts/test cluster` runs them. They share one cluster.

use std::{process::Stdio, time::Duration};

use tests::{
    kubectl::Kubectl,
    sandbox::{programs, shared},
};
use tokio::{
    process::Command,
    sync::{RwLock, RwLockReadGuard},
};

/// Whoever takes a node away from everybody writes.
static NODES: RwLock<()> = RwLock::const_new(());

/// The nodes stay as they are meanwhile.
async fn kubectl() -> (Kubectl, RwLockReadGuard<'static, ()>) {
    let nodes = NODES.read().await;
    (connected().await, nodes)
}

async fn connected() -> Kubectl {
    let sandbox = shared::get().await;
    Kubectl::new(programs::find("kubectl").expect("kubectl"), sandbox.kubeconfig())
}

/// A Pod with a container `main` that runs a line of shell, and more of its fields in JSON.
fn pod(name: &str, line: &str, fields: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "labels": {{"app": "{name}"}}}},
            "spec": {{"terminationGracePeriodSeconds": 1, "containers": [
                {{"name": "main", "image": "busybox", "command": ["sh", "-c", "{line}"] {fields}}},
                {{"name": "other", "image": "busybox", "command": ["sh", "-c", "echo other; exec sleep 1000"]}}]}}}}"#
    )
}

async fn ready(kubectl: &Kubectl, name: &str) {
    kubectl.run(&format!("wait --for=condition=Ready pod/{name} --timeout=60s")).await;
}

/// A word of `kubectl get pod NAME`, such as how often `main` was restarted.
const RESTARTS: &str = "jsonpath={.status.containerStatuses[?(@.name=='main')].restartCount}";
const READY: &str = "jsonpath={.status.containerStatuses[?(@.name=='main')].ready}";

/// Waits until a field of a Pod is as expected.
async fn until(kubectl: &Kubectl, name: &str, field: &str, what: &str, done: impl Fn(&str) -> bool) {
    kubectl.until(&format!("get pod {name} -o {field}"), what, done).await;
}

fn times(seen: &str) -> u32 {
    seen.parse().unwrap_or_default()
}

/// Runs until it is told to end, by a file.
const UNTIL_TOLD: &str = "rm -f /tmp/end; for i in 1 2 3; do echo line $i; done; \
                          until [ -e /tmp/end ]; do sleep 0.05; done; echo last; exit 3";

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_shown_whole_in_part_of_the_run_before_and_as_they_come() {
    let (kubectl, _nodes) = kubectl().await;
    kubectl.apply(&pod("talker", UNTIL_TOLD, "")).await;
    ready(&kubectl, "talker").await;
    let first = "line 1\nline 2\nline 3\n";
    assert_eq!(kubectl.run("logs talker -c main").await, first);
    assert_eq!(kubectl.run("logs talker -c main --tail=1").await, "line 3\n");
    assert_eq!(kubectl.run("logs talker -c main --tail=0").await, "");
    assert_eq!(kubectl.run("logs talker -c other").await, "other\n");
    let refused =
        kubectl.attempt(&["logs", "talker", "-c", "main", "--previous"], "").await.expect_err("no run before");
    assert!(refused.contains("no previous run"), "{refused}");
    let refused = kubectl.attempt(&["logs", "talker", "-c", "main", "--since=5s"], "").await.expect_err("no times");
    assert!(refused.contains("leave out sinceSeconds"), "{refused}");

    let follower = kubectl.clone();
    let following = tokio::spawn(async move { follower.run("logs -f talker -c main").await });
    kubectl.run("exec talker -c main -- touch /tmp/end").await;
    // It ends with the run that it follows, and not when the container starts again.
    let followed = tokio::time::timeout(Duration::from_secs(30), following).await.expect("it ends");
    assert_eq!(followed.expect("kubectl"), format!("{first}last\n"));
    until(&kubectl, "talker", RESTARTS, "it is started again", |seen| times(seen) == 1).await;
    assert_eq!(kubectl.run("logs talker -c main --previous").await, format!("{first}last\n"));
    kubectl.until("logs talker -c main", "it says the same again", |log| log == first).await;
    kubectl.run("delete pod talker --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_a_container_with_their_streams_and_exit_codes() {
    let (kubectl, _nodes) = kubectl().await;
    let fields = r#", "securityContext": {"runAsUser": 65532}, "env": [{"name": "COLOUR", "value": "red"}]"#;
    kubectl.apply(&pod("worker", "exec sleep 1000", fields)).await;
    ready(&kubectl, "worker").await;
    let line = "echo $COLOUR $(id -u) $(hostname)";
    let said = kubectl.words(&["exec", "worker", "-c", "main", "--", "sh", "-c", line]).await;
    assert_eq!(said, "red 65532 worker\n");

    let text = "a line\n".repeat(100_000);
    let same = kubectl.attempt(&["exec", "-i", "worker", "-c", "main", "--", "cat"], &text).await;
    assert!(same.expect("cat ends when its input does") == text, "every byte comes back");

    let failing = ["exec", "worker", "-c", "main", "--", "sh", "-c", "echo out; echo wrong >&2; exit 7"];
    let failed = kubectl.attempt(&failing, "").await.expect_err("it failed");
    assert!(failed.starts_with("wrong\n") && failed.contains("exit code 7"), "{failed}");

    // `script` is who types here: kubectl asks for a terminal only if it has one itself.
    let kubeconfig = shared::get().await.kubeconfig();
    let program = programs::find("kubectl").expect("kubectl");
    let typed = format!("stty rows 33 cols 99; {} exec -it worker -c other -- sh", program.display());
    let mut script = Command::new("script");
    script.args(["-qec", &typed, "/dev/null"]).env("KUBECONFIG", kubeconfig).kill_on_drop(true);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script");
    let mut keys = script.stdin.take().expect("a pipe");
    let typing = async {
        // The size is told after the start, by a message of its own.
        let line = "until [ \"$(stty size)\" = '33 99' ]; do sleep 0.05; done; [ -t 1 ] && exit 5\n";
        tokio::io::AsyncWriteExt::write_all(&mut keys, line.as_bytes()).await.expect("the shell reads");
        script.wait().await.expect("it ends")
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), typing).await.expect("the shell has a terminal");
    assert_eq!(ended.code(), Some(5));
    kubectl.run("delete pod worker --wait=false").await;
}

/// What these kubelets do not do is said, and not a silence.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_refused_with_a_reason() {
    let (kubectl, _nodes) = kubectl().await;
    kubectl.apply(&pod("silent", "exec sleep 1000", "")).await;
    ready(&kubectl, "silent").await;
    for line in ["attach silent -c main", "port-forward silent 0:80"] {
        let words: Vec<&str> = line.split(' ').collect();
        let refused = kubectl.attempt(&words, "").await.expect_err(line);
        assert!(refused.contains("docs/sandbox.md"), "{line}: {refused}");
    }
    kubectl.run("delete pod silent --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_restarted_when_its_liveness_probe_fails_and_not_before() {
    let (kubectl, _nodes) = kubectl().await;
    let probe = r#", "livenessProbe": {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1,
        "failureThreshold": 2}"#;
    kubectl.apply(&pod("lively", "touch /tmp/alive; exec sleep 1000", probe)).await;
    ready(&kubectl, "lively").await;
    let restarts = kubectl.words(&["get", "pod", "lively", "-o", RESTARTS]).await;
    assert_eq!(times(&restarts), 0);
    kubectl.run("exec lively -c main -- rm /tmp/alive").await;
    until(&kubectl, "lively", RESTARTS, "it is restarted", |seen| times(seen) == 1).await;
    // The other one is not to blame.
    let other = "jsonpath={.status.containerStatuses[?(@.name=='other')].restartCount}";
    assert_eq!(kubectl.words(&["get", "pod", "lively", "-o", other]).await, "0");
    until(&kubectl, "lively", READY, "it is ready again", |ready| ready == "true").await;
    kubectl.run("delete pod lively --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_probes_wait_for_the_startup_probe_and_its_failure_restarts() {
    let (kubectl, _nodes) = kubectl().await;
    // Both look for the same file; nobody asks whether it lives before it has started.
    let probe = |limit| {
        format!(
            r#", "startupProbe": {{"exec": {{"command": ["test", "-e", "/tmp/up"]}}, "periodSeconds": 1,
                "failureThreshold": {limit}}},
            "livenessProbe": {{"exec": {{"command": ["test", "-e", "/tmp/up"]}}, "periodSeconds": 1, "failureThreshold": 1}}"#
        )
    };
    kubectl.apply(&pod("slow", "sleep 3; touch /tmp/up; exec sleep 1000", &probe(60))).await;
    kubectl.apply(&pod("stuck", "exec sleep 1000", &probe(2))).await;
    until(&kubectl, "stuck", RESTARTS, "what does not start is restarted", |seen| times(seen) >= 1).await;
    let started = "jsonpath={.status.containerStatuses[?(@.name=='main')].started}";
    until(&kubectl, "slow", started, "it has started", |started| started == "true").await;
    until(&kubectl, "slow", READY, "it is ready", |ready| ready == "true").await;
    assert_eq!(times(&kubectl.words(&["get", "pod", "slow", "-o", RESTARTS]).await), 0);
    assert_eq!(kubectl.words(&["get", "pod", "stuck", "-o", READY]).await, "false");
    kubectl.run("delete pod slow stuck --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_probes_ask_the_health_service() {
    let (kubectl, _nodes) = kubectl().await;
    let pod = |name: &str, service: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}},
                "spec": {{"terminationGracePeriodSeconds": 1, "containers": [{{"name": "main", "image": "portico",
                    "args": ["echo"], "readinessProbe": {{"periodSeconds": 1, "grpc": {{"port": 8080, "service": "{service}"}}}}}}]}}}}"#
        )
    };
    kubectl.apply(&pod("healthy", "")).await;
    kubectl.apply(&pod("unknown", "no.such.Service")).await;
    ready(&kubectl, "healthy").await;
    until(&kubectl, "unknown", "jsonpath={.status.phase}", "it runs", |phase| phase == "Running").await;
    assert_eq!(kubectl.words(&["get", "pod", "unknown", "-o", READY]).await, "false");
    kubectl.run("delete pod healthy unknown --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_respect_budgets_and_taints_evict_who_does_not_tolerate_them() {
    let _alone = NODES.write().await;
    let kubectl = connected().await;
    kubectl.run("create deployment evicted --image=nginx --replicas=2").await;
    kubectl.rolled_out("default", "deployment/evicted").await;
    kubectl.run("create poddisruptionbudget evicted --selector=app=evicted --min-available=2").await;
    let allowed = "get poddisruptionbudget evicted -o jsonpath={.status.currentHealthy}/{.status.disruptionsAllowed}";
    kubectl.until(allowed, "the budget is counted", |seen| seen == "2/0").await;
    let node = kubectl.run("get pods -l app=evicted -o jsonpath={.items[0].spec.nodeName}").await;
    let on_node = format!("get pods -l app=evicted --field-selector=spec.nodeName={node} -o name");
    let before = kubectl.run(&on_node).await;
    let drain = format!("drain {node} --ignore-daemonsets --force --pod-selector=app=evicted --timeout=3s");
    let refused =
        kubectl.attempt(&drain.split(' ').collect::<Vec<_>>(), "").await.expect_err("no disruption is allowed");
    assert!(refused.contains("disruption budget"), "{refused}");
    assert_eq!(kubectl.run(&on_node).await, before, "nobody was evicted");
    kubectl.run("delete poddisruptionbudget evicted").await;
    kubectl.run(&drain.replace("3s", "60s")).await;
    kubectl.rolled_out("default", "deployment/evicted").await;
    assert_eq!(kubectl.run(&on_node).await, "");
    kubectl.run(&format!("uncordon {node}")).await;

    let node = kubectl.run("get pods -l app=evicted -o jsonpath={.items[0].spec.nodeName}").await;
    kubectl.run(&format!("taint node {node} maintenance=now:NoExecute")).await;
    let on_node = format!("get pods -l app=evicted --field-selector=spec.nodeName={node} -o name");
    kubectl.until(&on_node, "the node is left", str::is_empty).await;
    kubectl.run(&format!("taint node {node} maintenance-")).await;
    kubectl.rolled_out("default", "deployment/evicted").await;
    kubectl.run("delete deployment evicted --wait=false").await;
}
