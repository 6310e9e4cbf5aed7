//! gRPC: calls, streams and statuses as the endpoint gave them, and a status where there is no endpoint.

use std::collections::BTreeSet;

use api::proto::echo::{EchoRequest, EchoStreamRequest, echo_service_client::EchoServiceClient};
use serde_json::Value;
use tests::{
    certificate::Issued,
    manifests::node,
    services::{echo_pod, service},
    stack::Stack,
    tools,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, transport::Channel};

const NAME: &str = "echo.example.com";

/// Two sample backends behind plain gRPC at 30080 and gRPC over TLS at 30443, and a Service without any at 30081.
async fn stack(issued: &Issued) -> Stack {
    let pods = [echo_pod("web-1", "web", "2.1"), echo_pod("web-2", "web", "2.2")].concat();
    let ports = "{name: grpc, port: 80, targetPort: 8080, nodePort: 30080, appProtocol: grpc}, \
                 {name: tls, port: 443, targetPort: 8080, nodePort: 30443, appProtocol: https}";
    let annotations = "portico.dev/tls-secret: cert, portico.dev/protocol: grpc";
    let empty = service("empty", "", "{port: 80, targetPort: 8080, nodePort: 30081, appProtocol: grpc}");
    let all = [node("node-a", 1), pods, service("web", annotations, ports), issued.secret("cert"), empty].concat();
    Stack::start(&[("all.yaml", &all)]).await
}

async fn client(stack: &Stack, port: u16) -> EchoServiceClient<Channel> {
    let url = format!("http://{}", stack.at("1.1", port));
    EchoServiceClient::connect(url).await.expect("the port is open").max_decoding_message_size(usize::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_connection_reach_all_endpoints() {
    let stack = stack(&Issued::new(NAME)).await;
    let client = client(&stack, 30_080).await;
    let calls = (0..200u32).map(|at| {
        let mut client = client.clone();
        async move {
            let mut request = tonic::Request::new(EchoRequest { payload: at.to_be_bytes().to_vec().into() });
            request.metadata_mut().insert("x-call", at.into());
            let answer = client.echo(request).await.expect("an answer").into_inner();
            assert_eq!(&answer.payload[..], at.to_be_bytes());
            let seen = answer.headers.iter().find(|header| header.name == "x-call").map(|header| header.value.clone());
            assert_eq!(seen, Some(at.to_string()), "{answer:?}");
            answer.pod
        }
    });
    let pods: BTreeSet<String> = futures::future::join_all(calls).await.into_iter().collect();
    assert_eq!(pods.len(), 2, "{pods:?}");
    // Larger than any window of flow control.
    let large = EchoRequest { payload: vec![7; 3_000_000].into() };
    let answer = client.clone().echo(large.clone()).await.expect("an answer").into_inner();
    assert!(answer.payload == large.payload, "the message is the same");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_stream_go_both_ways_at_once() {
    let stack = stack(&Issued::new(NAME)).await;
    let (send, messages) = tokio::sync::mpsc::unbounded_channel();
    let answers = client(&stack, 30_080).await.echo_stream(UnboundedReceiverStream::new(messages)).await;
    let mut answers = answers.expect("the head comes before the first message").into_inner();
    let mut pods = BTreeSet::new();
    for at in 0..100u8 {
        // The next message is sent only when the last has come back: nothing may be held back.
        send.send(EchoStreamRequest { payload: vec![at; 1000].into() }).expect("the call goes on");
        let answer = answers.message().await.expect("the call goes on").expect("a message");
        assert_eq!(answer.payload, vec![at; 1000]);
        pods.insert(answer.pod);
    }
    assert_eq!(pods.len(), 1, "a call has one endpoint: {pods:?}");
    drop(send);
    assert!(answers.message().await.expect("an orderly end").is_none());
    assert!(answers.trailers().await.expect("trailers").is_some());
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_the_status_of_grpc() {
    let stack = stack(&Issued::new(NAME)).await;
    let channel = Channel::from_shared(format!("http://{}", stack.at("1.1", 30_080))).expect("a URL");
    let mut unknown = tonic::client::Grpc::new(channel.connect().await.expect("the port is open"));
    unknown.ready().await.expect("it is connected");
    let codec = tonic_prost::ProstCodec::<EchoRequest, EchoRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/portico.echo.v1.EchoService/None");
    let status =
        unknown.unary(tonic::Request::new(EchoRequest::default()), path, codec).await.expect_err("no such call");
    assert_eq!(status.code(), Code::Unimplemented, "the endpoint's own: {status:?}");

    let status = client(&stack, 30_081).await.echo(EchoRequest::default()).await.expect_err("no endpoint");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let reason = status.metadata().get("proxy-status").map(|value| value.to_str().expect("text").to_owned());
    assert!(reason.is_some_and(|reason| reason.contains("NO_ENDPOINTS")), "{status:?}");
    stack.stop().await;
}

/// grpcurl knows nothing of the service but what reflection says, through Portico.
#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_calls_by_reflection_in_the_clear_and_over_tls() {
    let issued = Issued::new(NAME);
    let stack = stack(&issued).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &issued.certificate).expect("a file can be written");
    let ca = ca.to_str().expect("a path in UTF-8");
    let (plain, tls) = (stack.at("1.1", 30_080).to_string(), stack.at("1.1", 30_443).to_string());
    for (flags, address) in [(&["-plaintext"][..], &plain), (&["-cacert", ca, "-servername", NAME], &tls)] {
        let grpcurl = async |args: &[&str]| {
            let mut command = tools::command("grpcurl");
            command.args(["-max-time", "20"]).args(flags);
            let (options, call) = args.split_at(args.len() - 1);
            let (code, output, log) = tools::run(command.args(options).arg(address).arg(call[0])).await;
            assert_eq!(code, Some(0), "{log}");
            output
        };
        let services = grpcurl(&["list"]).await;
        assert!(services.lines().any(|line| line == "portico.echo.v1.EchoService"), "{services}");
        let answer = grpcurl(&["-d", r#"{"payload": "aGVsbG8="}"#, "portico.echo.v1.EchoService/Echo"]).await;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["payload"], "aGVsbG8=", "{answer}");
        assert_eq!(answer["client"], "127.0.0.1", "{answer}");
        let health = grpcurl(&["grpc.health.v1.Health/Check"]).await;
        assert!(health.contains("SERVING"), "{health}");
        let stream = r#"{"payload": "YQ=="} {"payload": "Yg=="} {"payload": "Yw=="}"#;
        let answers = grpcurl(&["-d", stream, "portico.echo.v1.EchoService/EchoStream"]).await;
        assert_eq!(answers.matches("\"payload\"").count(), 3, "{answers}");
    }
    stack.stop().await;
}
