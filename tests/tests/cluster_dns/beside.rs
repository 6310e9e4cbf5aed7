use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tests::{
    kubectl::Kubectl,
    sandbox::{Sandbox, plan::Role, programs},
    server::Server,
};

use crate::{
    AGENT, UPSTREAM,
    ask::{Carrier, Question, Said, ask},
    cluster,
    differences::{self, Difference},
    questions, set_options, upstream_option,
};

/// Where CoreDNS answers, in the namespace of the outside client.
const PORT: u16 = 1_053;
/// What both know of the cluster is the same after this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// CoreDNS with what a cluster usually has, and lifetimes as they are without being set. The server that both ask for other
/// names has no TCP.
fn coredns(sandbox: &Sandbox) -> (Server, tempfile::TempDir) {
    let kubeconfig = sandbox.kubeconfig();
    let kubeconfig = kubeconfig.display();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("Corefile");
    let text = format!(
        ".:{PORT} {{
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods verified
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . {UPSTREAM} {{
        prefer_udp
    }}
}}
"
    );
    std::fs::write(&file, text).expect("the file can be written");
    let program = programs::find("coredns").expect("coredns");
    let mut command = sandbox.command(Role::Client, &program.display().to_string());
    command.arg("-conf").arg(&file);
    (Server::start(&mut command, "CoreDNS-", "-TERM"), directory)
}

/// Addresses of a Pod, as the API server has them.
async fn addresses(kubectl: &Kubectl, pod: &str) -> Vec<IpAddr> {
    let line = format!("-n shop get pod {pod} -o jsonpath={{.status.podIPs[*].ip}}");
    let listed = kubectl.run(&line).await;
    listed.split_whitespace().map(|address| address.parse().expect("an address")).collect()
}

/// What each of the two says to each question.
fn both(carrier: Carrier, questions: &[Question]) -> Vec<(Said, Said)> {
    let node = Role::Node(1).namespace();
    let ask = |server| ask(&node, server, carrier, questions).unwrap_or_else(|error| panic!("{error:#}"));
    ask(SocketAddr::new(Role::Client.addresses()[0], PORT)).into_iter().zip(ask(AGENT)).collect()
}

/// What differs and is not meant to, as text; and how often each difference occurs that is.
fn compare(questions: &[Question], said: &[(Said, Said)]) -> (Vec<String>, BTreeMap<&'static str, usize>) {
    let (mut wrong, mut meant) = (Vec::new(), BTreeMap::new());
    for (question, (theirs, ours)) in questions.iter().zip(said) {
        let mut expected = theirs.clone();
        for Difference { why, apply } in differences::ALL {
            let before = expected.clone();
            apply(question, &mut expected, ours);
            *meant.entry(*why).or_default() += usize::from(expected != before);
        }
        differences::keep(&mut expected, ours);
        if expected != *ours {
            wrong.push(format!("{question}\n  CoreDNS {theirs}\n  agent   {ours}"));
        }
    }
    (wrong, meant)
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_answer_as_coredns_does() {
    let (sandbox, kubectl, _turn) = cluster().await;
    set_options(&kubectl, &["PORTICO_DNS_PODS=verified", &upstream_option()]).await;
    let (_coredns, _file) = coredns(sandbox);
    let pod = addresses(&kubectl, "web-0").await;
    assert_eq!(pod.len(), 2, "both families");
    let questions = questions::all(&pod);
    for carrier in [Carrier::Udp, Carrier::Tcp] {
        let deadline = Instant::now() + PATIENCE;
        let (said, meant) = loop {
            let said = tokio::task::block_in_place(|| both(carrier, &questions));
            let (wrong, meant) = compare(&questions, &said);
            // What one of them has not heard of yet differs for a moment.
            if wrong.is_empty() {
                break (said, meant);
            }
            assert!(Instant::now() < deadline, "{} answers differ by {carrier:?}:\n{}", wrong.len(), wrong.join("\n"));
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let found = said.iter().filter(|(theirs, _)| !theirs.answers.is_empty()).count();
        let same = said.iter().filter(|(theirs, ours)| theirs == ours).count();
        println!("{carrier:?}: {} questions, {found} with answers, {same} answered alike", questions.len());
        for Difference { why, .. } in differences::ALL {
            let times = meant.get(why).copied().unwrap_or_default();
            println!("  {times} times: {why}");
            assert!(times > 0, "this difference is gone: {why}");
        }
    }
}
