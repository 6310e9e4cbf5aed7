use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use tests::{
    burst::{BUFFER, Burst},
    probe::Transport,
    sandbox::{netns, plan::Role},
};

use crate::{answers, cluster, cluster_ips, echo, pods, spent};

/// Questions a second, of all clients together.
const RATE: usize = 10_000;
/// Seconds of it.
const LENGTH: usize = 10;
/// Resolvers on each side, each at a port of its own.
const CLIENTS: usize = 16;
/// Where the Pods answer. Who does is a part of the test, so that little time is spent there.
const DNS: u16 = 5_353;
const NODE_PORT: u16 = 30_453;
/// How often it is looked whether there will be more questions.
const LOOK: Duration = Duration::from_millis(200);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: questions-dns}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: questions}
  ports: [{port: 53, targetPort: 5353, nodePort: 30453, protocol: UDP}]
";

fn question(id: usize) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.id = u16::try_from(id)?;
    message.queries.push(Query::query(Name::from_ascii("web.shop.svc.cluster.local.")?, RecordType::A));
    Ok(message.to_vec()?)
}

/// A server in the network namespace of a Pod that says of each question that there is no such record.
fn server(namespace: &str) -> Result<UdpSocket> {
    netns::within(namespace, || {
        let socket = UdpSocket::bind(("::", DNS))?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(socket)
    })
}

/// Answers until it is `over`, and gives how many questions came.
fn serve(socket: &UdpSocket, over: &AtomicBool) -> usize {
    let (mut buffer, mut count) = ([0; 512], 0);
    while !over.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        // The bit that makes an answer of a question.
        buffer[2] |= 0x80;
        // A client that is gone is nobody's loss here.
        let _ = socket.send_to(&buffer[..length], from);
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_questions_a_second_are_answered() {
    let (sandbox, kubectl, _turn) = cluster().await;
    // Endpoints that are on other nodes than who asks, so that half of the questions pass two agents.
    let workload = echo("questions", 2, "")
        .replace("    spec:\n", "    spec:\n      nodeSelector: {kubernetes.io/hostname: node-3}\n");
    kubectl.apply(&workload).await;
    kubectl.apply(SERVICE).await;
    kubectl.rolled_out("default", "deployment/questions").await;
    let inside = SocketAddr::new(cluster_ips(sandbox, "questions-dns").await[0].ip(), 53);
    let outside = SocketAddr::new(Role::Node(1).addresses()[0], NODE_PORT);
    // The other Service of these Pods came first, and is asked by other means.
    answers(Role::Node(2), cluster_ips(sandbox, "questions").await[0], Transport::Udp).await;
    let uids: Vec<String> =
        pods(sandbox, "app=questions").await.into_iter().filter_map(|pod| pod.metadata.uid).collect();
    let servers = uids.iter().map(|uid| server(&format!("portico-pod-{}", &uid[..8])));
    let servers = servers.collect::<Result<Vec<_>>>().expect("servers in the Pods");

    let offered = RATE * LENGTH;
    let each = offered / (2 * CLIENTS);
    let questions = (0..each).map(question).collect::<Result<Vec<_>>>().expect("questions");
    let ask = |from: Role, to| {
        let burst = Burst { to, clients: CLIENTS, questions: questions.clone(), rate: RATE / 2 };
        netns::within(&from.namespace(), move || burst.run())
    };
    let before = spent(sandbox, "agent").await;
    let over = AtomicBool::new(false);
    let (codes, arrived) = tokio::task::block_in_place(|| {
        thread::scope(|scope| {
            let serving: Vec<_> = servers.iter().map(|socket| scope.spawn(|| serve(socket, &over))).collect();
            let asking =
                [(Role::Client, outside), (Role::Node(2), inside)].map(|(from, to)| scope.spawn(move || ask(from, to)));
            let mut codes = BTreeMap::new();
            for asked in asking {
                for (code, times) in asked.join().expect("who asks does not panic").expect("questions can be asked") {
                    *codes.entry(code).or_insert(0) += times;
                }
            }
            over.store(true, Ordering::Relaxed);
            let arrived: usize = serving.into_iter().map(|serving| serving.join().expect("it does not panic")).sum();
            (codes, arrived)
        })
    });
    let spent = spent(sandbox, "agent").await - before;
    let answered: usize = codes.values().sum();
    println!(
        "{offered} questions at {RATE} a second: {arrived} arrived, {answered} were answered; agents used {:.1} µs of \
         processor time for each, of which half pass two agents",
        spent.as_secs_f64() * 1e6 / answered.max(1) as f64
    );
    assert_eq!(codes, BTreeMap::from([(0, 2 * CLIENTS * each)]), "{arrived} arrived");
    kubectl.run("delete service questions questions-dns --wait=false").await;
    kubectl.run("delete deployment questions --wait=false").await;
}
