//! `kubectl exec`: a command in a container, its streams over a WebSocket of the protocol `v5.channel.k8s.io`. The first
//! byte of each message names the stream.

use std::{
    fs::File,
    process::{ExitStatus, Stdio},
};

use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use nix::pty::openpty;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::{Child, Command},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::{Body, Refusal, pairs};
use crate::kubelet::{
    process::Access,
    running::{Name, Running},
};

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How the command ended, as a `Status` of the API.
const END: u8 = 3;
const RESIZE: u8 = 4;
/// The stream named by the next byte has ended.
const CLOSE: u8 = 255;

/// Bytes read from a command at a time.
const CHUNK: usize = 16 * 1024;

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;
type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// What is to be run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    command: Vec<String>,
    input: bool,
    terminal: bool,
}

/// A command that runs, and its streams.
struct Started {
    child: Child,
    input: Option<Writer>,
    outputs: Vec<(u8, Reader)>,
    /// The controlling end of its terminal, if it has one.
    terminal: Option<File>,
}

/// Begins a command, whose streams are what the connection is from then on.
pub fn answer(running: &Running, name: &Name, mut request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    // First of all, as a client whose WebSocket is refused asks again by other means, and shows the second answer.
    let Some(access) = running.access(name) else {
        let text = format!("container {:?} of Pod {}/{} does not run", name.container, name.namespace, name.pod);
        return Err(Refusal::new(StatusCode::NOT_FOUND, text));
    };
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let Some(key) = key.filter(|_| offered.map(str::trim).any(|protocol| protocol == PROTOCOL)) else {
        let text =
            format!("the sandbox's kubelets run commands over WebSockets only ({PROTOCOL}): use kubectl 1.31 or newer");
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, text));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Who asked may have gone.
        let Ok(upgraded) = upgrade.await else { return };
        serve(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await, &access, &query)
            .await;
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Full::default().boxed());
    response.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn serve(socket: Socket, access: &Access, query: &Query) {
    let (mut sink, source) = socket.split();
    let status = match query.start(access) {
        Ok(started) => match converse(&mut sink, source, started).await {
            Some(end) => end,
            // Nobody is left to be told.
            None => return,
        },
        Err(error) => json!({ "status": "Failure", "message": format!("{error:#}") }),
    };
    let status = [&[END], status.to_string().as_bytes()].concat();
    // The same holds for these.
    let _ = sink.send(Message::binary(status)).await;
    // Without a code the client takes the end for a failure.
    let _ = sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await;
}

/// Carries the streams until the command has ended. Gives how; nothing if the client has gone before.
async fn converse(
    sink: &mut SplitSink<Socket, Message>,
    source: SplitStream<Socket>,
    started: Started,
) -> Option<Value> {
    let Started { mut child, input, outputs, terminal } = started;
    let (send, mut chunks) = mpsc::channel(16);
    let reading = futures::future::join_all(outputs.into_iter().map(|(stream, from)| pump(stream, from, send.clone())));
    drop(send);
    let running = async {
        let (ended, _) = tokio::join!(child.wait(), reading);
        ended
    };
    let sending = async {
        while let Some(chunk) = chunks.recv().await {
            sink.send(Message::binary::<Vec<u8>>(chunk)).await.ok()?;
        }
        Some(())
    };
    tokio::select! {
        (ended, sent) = async { tokio::join!(running, sending) } => sent.map(|()| match ended {
            Ok(status) => end(status),
            Err(error) => json!({ "status": "Failure", "message": error.to_string() }),
        }),
        () = listen(source, input, terminal) => None,
    }
}

/// Hands what a command says on, with the stream's number before it, until it has said everything.
async fn pump(stream: u8, mut from: Reader, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; CHUNK];
    // A terminal that nobody has open any more fails instead of ending.
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.send([&[stream], &buffer[..length]].concat()).await.is_err() {
            return;
        }
    }
}

/// Hands to the command what the client says. Ends when the client has gone.
async fn listen(mut source: SplitStream<Socket>, mut input: Option<Writer>, terminal: Option<File>) {
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(message) = message else { continue };
        match message[..] {
            [STDIN, ref bytes @ ..] => {
                if let Some(to) = &mut input
                    && (to.write_all(bytes).await.is_err() || to.flush().await.is_err())
                {
                    // It reads no more, and may run on.
                    input = None;
                }
            }
            [CLOSE, STDIN] => input = None,
            [RESIZE, ref size @ ..] => {
                if let (Some(terminal), Ok(size)) = (&terminal, serde_json::from_slice(size)) {
                    resize(terminal, &size).await;
                }
            }
            _ => {}
        }
    }
}

async fn resize(terminal: &File, size: &Value) {
    let (Some(rows), Some(columns), Ok(terminal)) =
        (size["Height"].as_u64(), size["Width"].as_u64(), terminal.try_clone())
    else {
        return;
    };
    let mut stty = Command::new("stty");
    stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]).stdin(terminal).stderr(Stdio::null());
    // A terminal of the wrong size is still one.
    let _ = stty.status().await;
}

fn end(status: ExitStatus) -> Value {
    let code = super::super::process::code(status);
    if code == 0 {
        return json!({ "status": "Success" });
    }
    json!({
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: {code}"),
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

// === impl Query ===

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for (name, value) in pairs(text) {
            match name.as_str() {
                "command" => query.command.push(value),
                "input" => query.input = value == "1",
                "tty" => query.terminal = value == "1",
                _ => {}
            }
        }
        query
    }

    fn start(&self, access: &Access) -> anyhow::Result<Started> {
        if self.terminal { self.start_in_terminal(access) } else { self.start_with_pipes(access) }
    }

    fn start_with_pipes(&self, access: &Access) -> anyhow::Result<Started> {
        let mut command = access.command(&self.command);
        command.stdin(if self.input { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().map(|stdout| (STDOUT, Box::new(stdout) as Reader));
        let stderr = child.stderr.take().map(|stderr| (STDERR, Box::new(stderr) as Reader));
        let input = child.stdin.take().map(|stdin| Box::new(stdin) as Writer);
        Ok(Started { child, input, outputs: stdout.into_iter().chain(stderr).collect(), terminal: None })
    }

    /// In a terminal there is one output, and the end of the input is a character that is typed.
    fn start_in_terminal(&self, access: &Access) -> anyhow::Result<Started> {
        let pty = openpty(None, None)?;
        let (controller, terminal) = (File::from(pty.master), File::from(pty.slave));
        let session = ["setsid", "--ctty", "--wait", "--"].map(str::to_owned);
        let mut command = access.command(&[&session, &self.command[..]].concat());
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        let child = command.spawn()?;
        // It holds the other end too, which has to be open in the command only.
        drop(command);
        let file = |file: &File| file.try_clone().map(tokio::fs::File::from_std);
        let input = if self.input { Some(Box::new(file(&controller)?) as Writer) } else { None };
        let outputs = vec![(STDOUT, Box::new(file(&controller)?) as Reader)];
        Ok(Started { child, input, outputs, terminal: Some(controller) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn words_of_a_command_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%26b&input=1&output=1&error=1");
        let command = ["sh", "-c", "echo a&b"].map(str::to_owned).to_vec();
        assert_eq!(query, Query { command, input: true, terminal: false });
        assert!(Query::parse("command=sh&tty=1").terminal);
    }

    #[test]
    fn an_exit_code_is_a_cause_that_kubectl_finds() {
        assert_eq!(end(ExitStatus::from_raw(0)), json!({ "status": "Success" }));
        let failed = end(ExitStatus::from_raw(7 << 8));
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
        assert_eq!(end(ExitStatus::from_raw(9))["details"]["causes"][0]["message"], "137");
    }
}
