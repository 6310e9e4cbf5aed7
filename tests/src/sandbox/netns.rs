//! Network namespaces, and what connects them: one bridge, a cable from it to each node and to the outside client.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use super::plan::{BRIDGE, HOST, NAMESPACE_PREFIX, Plan, Role};

/// `IPCTNL_MSG_CT_DELETE` of linux/netfilter/nfnetlink_conntrack.h.
const CTNETLINK_DELETE: u16 = 2;

/// Where `ip netns` keeps namespaces.
const DIRECTORY: &str = "/run/netns";

/// What every namespace of the sandbox has instead of the kernel's defaults. The congestion control of the machine may
/// not be allowed in namespaces, and namespaces may inherit the machine's own settings: these are Debian's.
const SYSCTLS: [(&str, &str); 6] = [
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// What makes a node a router, which every node of a cluster is.
const FORWARDING: [(&str, &str); 2] = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Makes the bridge and all namespaces on it.
///
/// # Errors
/// When `ip` fails; what was made so far stays.
pub fn build(plan: &Plan) -> Result<()> {
    let mut bridge = vec![format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")];
    bridge.extend(HOST.map(|address| format!("address add {} dev {BRIDGE}{}", on_link(address), nodad(address))));
    bridge.push(format!("link set {BRIDGE} up"));
    ip(None, &bridge)?;
    plan.roles().try_for_each(connect)
}

/// A command in a network namespace.
pub fn command(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(namespace).display())).arg("--").arg(program);
    command
}

/// Does something inside a network namespace: sockets that are opened there belong to it wherever they are used.
///
/// # Errors
/// When the namespace cannot be entered, and those of what is done.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path(namespace)).with_context(|| format!("there is no network namespace {namespace}"))?;
    // A namespace is entered by a thread, and this one ends with the work.
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace: this needs root")?;
            work()
        });
        worker.join().unwrap_or_else(|_| Err(anyhow!("the work in namespace {namespace} panicked")))
    })
}

/// Runs lines of `ip` in a namespace, or in that of the machine, until one fails.
///
/// # Errors
/// What `ip` says.
pub fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-netns", namespace]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run ip (of iproute2)")?;
    let mut stdin = child.stdin.take().context("ip reads lines")?;
    // It may have stopped reading because a line failed; that is what its status says.
    let _ = stdin.write_all(lines.join("\n").as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        bail!("ip failed: {}; its lines were:\n{}", String::from_utf8_lossy(&output.stderr).trim(), lines.join("\n"));
    }
    Ok(())
}

/// Makes the routes to the Pods of a node, in a namespace or on the machine itself. Those that are there are replaced.
///
/// # Errors
/// When `ip` fails.
pub fn route_pods(namespace: Option<&str>, node: Role, pod_cidrs: &[String]) -> Result<()> {
    let [v4, v6] = node.addresses();
    let route = |cidr: &String| format!("route replace {cidr} via {}", if cidr.contains(':') { v6 } else { v4 });
    ip(namespace, &pod_cidrs.iter().map(route).collect::<Vec<_>>())
}

/// Makes the kernel forget the connections that it tracks in a namespace, and with them what packet rules once decided
/// about each.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_connections(namespace: &str) -> Result<()> {
    within(namespace, || {
        let protocol = Protocol::from(libc::NETLINK_NETFILTER);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol));
        let mut socket = socket.context("cannot ask the kernel for its connections")?;
        // A header of netlink, and one of nfnetlink that names no family and no connection: all are meant.
        let kind = u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8).unwrap_or_default() | CTNETLINK_DELETE;
        let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
        let mut request = [0; 20];
        request[..4].copy_from_slice(&20_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        socket.send(&request).context("cannot ask the kernel to forget its connections")?;
        let mut answer = [0; 256];
        let length = socket.read(&mut answer).context("the kernel does not answer")?;
        // After the header: an error number, negative, or 0.
        ensure!(length >= 20, "the answer of the kernel is too short");
        let code = i32::from_ne_bytes(answer[16..20].try_into().context("four bytes")?);
        ensure!(code == 0, "the kernel does not forget its connections: {}", io::Error::from_raw_os_error(-code));
        Ok(())
    })
}

/// Names of all network namespaces of the sandbox, those of Pods too.
pub fn all() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(NAMESPACE_PREFIX)).collect()
}

/// The file that names a namespace.
pub fn path(namespace: &str) -> PathBuf {
    Path::new(DIRECTORY).join(namespace)
}

/// Makes the namespace of a role, with `eth0` on the bridge.
fn connect(role: Role) -> Result<()> {
    let (namespace, link) = (role.namespace(), role.link());
    ip(
        None,
        &[
            format!("netns add {namespace}"),
            format!("link add {link} type veth peer name eth0 netns {namespace}"),
            format!("link set {link} master {BRIDGE} up"),
        ],
    )?;
    within(&namespace, || {
        set(&SYSCTLS)?;
        match role {
            Role::Node(_) => set(&FORWARDING),
            Role::Client => Ok(()),
        }
    })?;
    let mut lines = vec!["link set lo up".to_owned()];
    lines
        .extend(role.addresses().map(|address| format!("address add {} dev eth0{}", on_link(address), nodad(address))));
    lines.push("link set eth0 up".to_owned());
    lines.extend(HOST.map(|gateway| format!("route add default via {gateway}")));
    ip(Some(&namespace), &lines)
}

fn set(sysctls: &[(&str, &str)]) -> Result<()> {
    for (name, value) in sysctls {
        // The kernel answers for the namespace of whoever opens the file.
        fs::write(Path::new("/proc/sys/net").join(name), value)
            .with_context(|| format!("cannot set {name}={value}"))?;
    }
    Ok(())
}

fn on_link(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv6() { 64 } else { 24 })
}

/// Nobody else has these addresses, so that nobody has to wait until that is found out.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}
