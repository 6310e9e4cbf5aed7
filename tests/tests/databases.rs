//! Redis and PostgreSQL from Debian behind node ports, asked by their own clients.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use tests::{manifests::node, server::Server, services::manual, stack::Stack, tools};

/// One Service with one endpoint, which is not a Pod, at node port 30090.
async fn database(name: &str, port: u16) -> Stack {
    let service = manual(name, "", &format!("{{port: {port}, nodePort: 30090}}"), &[("2.1", port)]);
    Stack::start(&[("all.yaml", &(node("node-a", 1) + &service))]).await
}

/// Output of a client that succeeded.
async fn good(command: &mut tokio::process::Command) -> String {
    let (code, output, log) = tools::run(command).await;
    assert_eq!(code, Some(0), "{command:?}: {output}{log}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_talks_to_redis() {
    let stack = database("redis", 6379).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut redis = Command::new(tools::find("redis-server"));
    let bind = stack.ip("2.1").to_string();
    redis.args(["--bind", &bind, "--port", "6379", "--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    redis.arg("--dir").arg(directory.path());
    let _redis = Server::start(&mut redis, "Ready to accept connections", "-TERM");

    let cli = |args: &[&str]| {
        let mut cli = tools::command("redis-cli");
        cli.args(["-h", &stack.ip("1.1").to_string(), "-p", "30090"]).args(args);
        cli
    };
    assert_eq!(good(&mut cli(&["ping"])).await, "PONG\n");
    assert_eq!(good(&mut cli(&["set", "key", "a value with\nlines"])).await, "OK\n");
    assert_eq!(good(&mut cli(&["get", "key"])).await, "a value with\nlines\n");
    // 20,000 commands without waiting for an answer, then all answers.
    let commands: String = (0..20_000).map(|at| format!("SET key:{at} {at}\r\n")).collect();
    let file = directory.path().join("commands");
    std::fs::write(&file, commands).expect("a file can be written");
    let output = good(cli(&["--pipe"]).stdin(std::fs::File::open(&file).expect("the file is there"))).await;
    assert!(output.contains("errors: 0, replies: 20000"), "{output}");
    assert_eq!(good(&mut cli(&["get", "key:19999"])).await, "19999\n");
    assert_eq!(good(&mut cli(&["eval", "return string.rep('x', 5000000)", "0"])).await.trim_end().len(), 5_000_000);

    // A subscription hears what another connection says.
    let mut subscriber = tools::Talker::start(&mut cli(&["subscribe", "news"]));
    while subscriber.line().await != "1" {}
    assert_eq!(good(&mut cli(&["publish", "news", "extra"])).await, "1\n");
    while subscriber.line().await != "extra" {}
    drop(subscriber);
    stack.stop().await;
}

/// The newest PostgreSQL that is installed.
fn postgres() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin")).max();
    newest.unwrap_or_else(|| panic!("PostgreSQL is not installed: run scripts/setup"))
}

/// A command of PostgreSQL's, which refuses to run as root.
fn as_nobody(program: &Path) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new(tools::find("setpriv"));
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command
}

fn start_postgres(directory: &Path, listen: SocketAddr) -> Server {
    let (bin, data) = (postgres(), directory.join("data"));
    std::fs::create_dir(&data).expect("a directory can be made");
    if nix::unistd::geteuid().is_root() {
        let nobody = nix::unistd::User::from_name("nobody").expect("users can be read").expect("there is nobody");
        for path in [directory, &data] {
            nix::unistd::chown(path, Some(nobody.uid), Some(nobody.gid)).expect("root may");
        }
    }
    let mut initdb = as_nobody(&bin.join("initdb"));
    let initdb = initdb.args(["--no-sync", "--auth=trust", "--username=portico", "--locale=C", "-E", "UTF8", "-D"]);
    let output = initdb.arg(&data).current_dir("/").output().expect("initdb can be run");
    assert!(output.status.success(), "{output:?}");
    let mut server = as_nobody(&bin.join("postgres"));
    server.arg("-D").arg(&data).arg("-k").arg(directory).current_dir("/");
    server.args(["-h", &listen.ip().to_string(), "-p", &listen.port().to_string(), "-F"]);
    // With SIGQUIT it does not wait for its clients, and takes its children with it.
    Server::start(&mut server, "database system is ready to accept connections", "-QUIT")
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_and_pgbench_talk_to_postgresql() {
    let stack = database("postgres", 5432).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let _postgres = start_postgres(directory.path(), stack.at("2.1", 5432));
    let host = stack.ip("1.1").to_string();
    let connection = ["-h", &host, "-p", "30090", "-U", "portico"];
    let psql = async |script: &str| {
        let mut psql = tools::command("psql");
        psql.args(connection).args(["-d", "postgres", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", script]);
        good(&mut psql).await
    };
    assert_eq!(psql("select 6 * 7").await, "42\n");
    psql("create table t as select n, md5(n::text) from generate_series(1, 200000) n").await;
    // Out and in again by COPY: megabytes in either direction.
    let (mut out, file) = (tools::command("psql"), directory.path().join("copy"));
    let rows = good(out.args(connection).args(["-d", "postgres", "-X", "-q", "-c", "copy t to stdout"])).await;
    assert_eq!(rows.lines().count(), 200_000);
    std::fs::write(&file, &rows).expect("a file can be written");
    let load = format!("create table u (like t)\n;\\copy u from '{}'\n", file.display());
    let script = directory.path().join("load.sql");
    std::fs::write(&script, load).expect("a file can be written");
    let mut psql_file = tools::command("psql");
    let args = ["-d", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"];
    good(psql_file.args(connection).args(args).arg(&script)).await;
    assert_eq!(psql("select count(*) from t natural join u").await, "200000\n");
    // An error is the server's, and says so.
    let mut wrong = tools::command("psql");
    let (code, _, log) = tools::run(wrong.args(connection).args(["-d", "postgres", "-X", "-c", "selec"])).await;
    assert!(code == Some(1) && log.contains("syntax error"), "{log}");

    // Cancelling is a second connection, which has to reach the same server.
    let mut slow = tools::command("psql");
    slow.args(connection).args(["-d", "postgres", "-X", "-A", "-t", "-q"]);
    slow.args(["-c", "\\! echo $PPID", "-c", "select 'pid', pg_backend_pid()", "-c", "select pg_sleep(600)"]);
    let mut slow = tools::Talker::start(&mut slow);
    let client = slow.line().await;
    let line = slow.line().await;
    let pid = line.strip_prefix("pid|").unwrap_or_else(|| panic!("{line}")).to_owned();
    while psql(&format!("select wait_event from pg_stat_activity where pid = {pid}")).await != "PgSleep\n" {}
    let signalled = Command::new("kill").args(["-INT", &client]).status().expect("kill can be run");
    assert!(signalled.success());
    let cancelled = async {
        while psql(&format!("select wait_event from pg_stat_activity where pid = {pid}")).await == "PgSleep\n" {}
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), cancelled).await.expect("the query is cancelled");
    drop(slow);

    let mut pgbench = tools::command(postgres().join("pgbench").to_str().expect("a path in UTF-8"));
    good(pgbench.args(connection).args(["-i", "-q", "-s", "1", "postgres"])).await;
    let mut pgbench = tools::command(postgres().join("pgbench").to_str().expect("a path in UTF-8"));
    let output = good(pgbench.args(connection).args(["-C", "-c", "4", "-t", "100", "-S", "-n", "postgres"])).await;
    assert!(output.contains("number of transactions actually processed: 400/400"), "{output}");
    assert!(output.contains("number of failed transactions: 0"), "{output}");
    stack.stop().await;
}
