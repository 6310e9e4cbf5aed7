use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::{
    probe::{self, Seen, Transport},
    sandbox::{exec, plan::Role, portico::SYSTEM},
};
use tokio::sync::Mutex;

use crate::{ANSWER, PATIENCE, answers, answers_everywhere, cluster, cluster_ips, echo, installed, nodes, pods};

/// How soon rules that somebody removed have to be back.
const RENEWED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_somebody_flushed_come_back() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("flushed", 2, "")).await;
    kubectl.rolled_out("default", "deployment/flushed").await;
    let addresses = cluster_ips(sandbox, "flushed").await;
    answers_everywhere(&addresses).await;
    let node = Role::Node(1);
    let status = sandbox.command(node, "nft").args(["flush", "ruleset"]).status().expect("nft runs");
    assert!(status.success(), "the rules can be removed");
    let flushed = Instant::now();
    while installed(sandbox, node).await.is_none() {
        assert!(flushed.elapsed() < RENEWED, "the rules are not back after {RENEWED:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("rules were back {:?} after `nft flush ruleset`", flushed.elapsed());
    answers_everywhere(&addresses).await;
    kubectl.run("delete service,deployment flushed --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_comes_back_and_others_go_on() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("orphaned", 3, "")).await;
    kubectl.rolled_out("default", "deployment/orphaned").await;
    let addresses = cluster_ips(sandbox, "orphaned").await;
    answers_everywhere(&addresses).await;
    let agents = pods(sandbox, "app.kubernetes.io/component=agent").await;
    let on_node = |pod: &&k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some("node-1"))
    };
    let agent = agents.iter().find(on_node).expect("an agent on the node");
    let uid = agent.metadata.uid.as_deref().expect("a uid");
    let process = exec::container(uid).expect("its process");
    // Others are asked all the time.
    let failures = Arc::new(Mutex::new(Vec::new()));
    let asking = tokio::spawn({
        let (failures, to) = (failures.clone(), addresses.clone());
        async move {
            for turn in 0_usize.. {
                let from = Role::Node(2 + u8::from(turn % 2 == 0));
                let seen = probe::ask(&from.namespace(), to[turn / 2 % 2], Transport::Tcp, 5 * ANSWER).await;
                if !matches!(seen, Seen::Answer { .. }) {
                    failures.lock().await.push(format!("{}: {seen:?}", from.name()));
                }
            }
        }
    });
    kill(Pid::from_raw(process.pid()), Signal::SIGKILL).expect("the agent can be killed");
    let killed = Instant::now();
    while process.is_running() {
        assert!(killed.elapsed() < PATIENCE, "the agent does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    answers(Role::Node(1), addresses[0], Transport::Tcp).await;
    println!("the node answered again {:?} after its agent was killed", killed.elapsed());
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    answers_everywhere(&addresses).await;
    asking.abort();
    let failures = failures.lock().await;
    assert!(failures.is_empty(), "other nodes: {failures:#?}");
    for node in nodes() {
        assert!(installed(sandbox, node).await.is_some(), "{} has its rules", node.name());
    }
    kubectl.run("delete service,deployment orphaned --wait=false").await;
}
