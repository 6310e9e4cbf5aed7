//! A container as a process of this machine, in namespaces of its own.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Capabilities, PodSecurityContext, SecurityContext};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::env::Variables;

/// Makes the root and becomes the container.
const SCRIPT: &str = include_str!("process/container.sh");
/// Set in each process of a sandbox, so that one that was left behind is recognised. The value is the Pod's UID.
pub const MARKER: &str = "PORTICO_SANDBOX";
/// Making a root takes some dozen mounts.
const SETUP: Duration = Duration::from_secs(30);
/// How often it is looked whether the root is made.
const LOOK: Duration = Duration::from_millis(5);
/// Where programs are found when the container does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What containers may do by default: the list of containerd.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "chown",
    "dac_override",
    "fsetid",
    "fowner",
    "mknod",
    "net_raw",
    "setgid",
    "setuid",
    "setfcap",
    "setpcap",
    "net_bind_service",
    "sys_chroot",
    "kill",
    "audit_write",
];

/// What a container runs as, from the security contexts of Pod and container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Numeric user.
    pub user: i64,
    /// Numeric primary group.
    pub group: i64,
    /// Further groups.
    pub groups: Vec<i64>,
    /// Bounding set, in lower case and without `CAP_`; `None` is everything.
    pub capabilities: Option<Vec<String>>,
    /// Whether programs may raise their privileges.
    pub escalation: bool,
}

/// A file or directory of the machine in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Path on the machine, without links in it.
    pub source: PathBuf,
    /// Path in the container.
    pub target: String,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// Whether mounts that the machine makes below it later are seen.
    pub follows_host: bool,
}

/// All that it takes to start a container.
#[derive(Debug)]
pub struct Launch {
    /// UID of the Pod.
    pub pod: String,
    /// A directory for this container alone.
    pub directory: PathBuf,
    /// Where standard output and error go.
    pub log: PathBuf,
    /// Network namespace; `None` is the node's.
    pub network: Option<String>,
    /// Host name; `None` is that of the machine.
    pub hostname: Option<String>,
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Whether it has the machine's devices.
    pub privileged: bool,
    /// Whether its root cannot be written to.
    pub read_only_root: bool,
    /// What it runs as.
    pub credentials: Credentials,
    /// Where it runs.
    pub working_directory: String,
    /// Its environment.
    pub variables: Variables,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A container that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    access: Access,
    killed: bool,
}

/// The way into a running container for further commands.
#[derive(Debug, Clone)]
pub struct Access {
    /// Its first process.
    pid: Pid,
    become_it: Vec<String>,
}

// === impl Credentials ===

impl Credentials {
    /// Merges the security contexts; that of the container goes first.
    ///
    /// # Errors
    /// When root is forbidden and nothing else is asked for.
    pub fn new(pod: &PodSecurityContext, container: &SecurityContext) -> Result<Self, String> {
        let user = container.run_as_user.or(pod.run_as_user).unwrap_or(0);
        if user == 0 && container.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            return Err("container has runAsNonRoot and image will run as root".to_owned());
        }
        let privileged = container.privileged == Some(true);
        let groups = pod.supplemental_groups.iter().flatten().copied().chain(pod.fs_group).collect();
        Ok(Self {
            user,
            group: container.run_as_group.or(pod.run_as_group).unwrap_or(0),
            groups,
            capabilities: (!privileged).then(|| capabilities(container.capabilities.as_ref())).flatten(),
            escalation: privileged || container.allow_privilege_escalation != Some(false),
        })
    }

    /// Words of `setpriv`, up to the command that is to be run.
    fn words(&self) -> Vec<String> {
        let mut words =
            vec!["/usr/bin/setpriv".to_owned(), format!("--reuid={}", self.user), format!("--regid={}", self.group)];
        let groups: Vec<String> = self.groups.iter().map(i64::to_string).collect();
        words.push(if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        });
        if let Some(capabilities) = &self.capabilities {
            let kept: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
            words.push(format!("--bounding-set=-all{kept}"));
        }
        words.push("--inh-caps=-all".to_owned());
        if !self.escalation {
            words.push("--no-new-privs".to_owned());
        }
        words.push("--".to_owned());
        words
    }
}

/// The bounding set: the default without what is dropped, and what is added. `None` is everything.
fn capabilities(asked: Option<&Capabilities>) -> Option<Vec<String>> {
    let plain = |name: &String| name.to_lowercase().trim_start_matches("cap_").to_owned();
    let names = |list: Option<&Vec<String>>| list.into_iter().flatten().map(plain).collect::<Vec<_>>();
    let add = names(asked.and_then(|asked| asked.add.as_ref()));
    let drop = names(asked.and_then(|asked| asked.drop.as_ref()));
    if add.iter().any(|name| name == "all") {
        return None;
    }
    let all = drop.iter().any(|name| name == "all");
    let kept = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned());
    let mut kept: Vec<String> = kept.filter(|name| !all && !drop.contains(name)).collect();
    let new: Vec<String> = add.into_iter().filter(|name| !kept.contains(name)).collect();
    kept.extend(new);
    Some(kept)
}

// === impl Launch ===

impl Launch {
    /// Starts the container, and gives it when its root is made.
    ///
    /// # Errors
    /// When the root cannot be made; the log of the container says why.
    pub async fn start(&self) -> anyhow::Result<Process> {
        tokio::fs::create_dir_all(self.directory.join("root")).await?;
        tokio::fs::create_dir_all(self.log.parent().unwrap_or(&self.directory)).await?;
        let made = self.directory.join("made");
        // Left by the container's previous run.
        let _ = tokio::fs::remove_file(&made).await;
        let log = std::fs::File::options().create(true).append(true).open(&self.log).context("cannot open the log")?;
        let words = self.words();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("PATH", PATH)
            .env(MARKER, &self.pod)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run setpriv")?;
        let outer = child.id().context("the process has a number")?;
        let begin = tokio::time::Instant::now();
        while !made.exists() {
            if let Some(status) = child.try_wait()? {
                bail!("the root of the container cannot be made ({status}); see {}", self.log.display());
            }
            if begin.elapsed() > SETUP {
                bail!("the root of the container is not made after {SETUP:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
        let pid = only_child(outer).with_context(|| format!("the container's process {outer} has no child"))?;
        Ok(Process { child, access: Access { pid, become_it: self.become_it() }, killed: false })
    }

    /// The whole command line. Each word of it replaces the one before, up to `unshare`, which stays as the parent: when
    /// the kubelet's thread ends the parent is killed, and its child, the first process of the container, with it.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["setpriv", "--pdeathsig=KILL", "--"].map(Into::into).into();
        if let Some(network) = &self.network {
            words.extend(["nsenter".into(), format!("--net=/run/netns/{network}").into(), "--".into()]);
        }
        let unshare = "unshare --mount --propagation=slave --uts --ipc --pid --fork --kill-child=KILL -- bash -c";
        words.extend(unshare.split(' ').map(Into::into));
        words.extend([SCRIPT.into(), "container".into(), self.directory.clone().into()]);
        words.push(self.hostname.clone().unwrap_or_default().into());
        words.extend([self.privileged, self.read_only_root].map(|flag| flag.to_string().into()));
        words.push(self.mounts.len().to_string().into());
        for mount in &self.mounts {
            let access = if mount.read_only { "ro" } else { "rw" };
            let propagation = if mount.follows_host { "slave" } else { "private" };
            words.extend([
                mount.source.clone().into(),
                mount.target.clone().into(),
                format!("{access},{propagation}").into(),
            ]);
        }
        words.extend(self.become_it().into_iter().map(Into::into));
        words.extend(self.command.iter().map(Into::into));
        words
    }

    /// Words before a command that is to run as the container: as its user, in its directory, with its environment.
    fn become_it(&self) -> Vec<String> {
        let mut words = self.credentials.words();
        words.extend(["/usr/bin/env".to_owned(), "-i".to_owned(), format!("--chdir={}", self.working_directory)]);
        words.push(format!("{MARKER}={}", self.pod));
        let given = |name: &str| self.variables.iter().any(|(other, _)| other == name);
        for (name, value) in [("PATH", PATH), ("HOME", if self.credentials.user == 0 { "/root" } else { "/" })] {
            if !given(name) {
                words.push(format!("{name}={value}"));
            }
        }
        words.extend(self.variables.iter().map(|(name, value)| format!("{name}={value}")));
        words
    }
}

fn only_child(of: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

// === impl Process ===

impl Process {
    /// Waits for the end. Gives the exit code, which is 128 and the number of the signal when one ended it.
    pub async fn wait(&mut self) -> i32 {
        match self.child.wait().await {
            // `unshare` ends as its child does, except that it says 1 for SIGKILL.
            Ok(_) if self.killed => 128 + Signal::SIGKILL as i32,
            Ok(status) => code(status),
            Err(_) => 255,
        }
    }

    /// Sends a signal to its first process.
    pub fn signal(&mut self, signal: Signal) {
        self.killed |= signal == Signal::SIGKILL;
        // It may have ended meanwhile.
        let _ = kill(self.access.pid, signal);
    }

    /// The way in for further commands.
    pub fn access(&self) -> Access {
        self.access.clone()
    }
}

/// The exit code of a process, which is 128 and the number of the signal when one ended it.
pub(super) fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

// === impl Access ===

impl Access {
    /// Number of the first process, as the machine counts.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// A command that runs in the container, as its user and with its environment.
    pub fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new("nsenter");
        let target = format!("--target={}", self.pid);
        command.args([&target, "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        command.args(&self.become_it).args(words).stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(pod: serde_json::Value, container: serde_json::Value, expected: &[&str]) {
        let pod = serde_json::from_value(pod).unwrap();
        let container = serde_json::from_value(container).unwrap();
        let words = Credentials::new(&pod, &container).unwrap().words();
        for word in expected {
            assert!(words.iter().any(|other| other == word), "{word} is not in {words:?}");
        }
    }

    #[test]
    fn capabilities_are_dropped_before_they_are_added() {
        let of = |asked: serde_json::Value| json!({ "capabilities": asked });
        check(json!({}), of(json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] })), &["--bounding-set=-all,+net_admin"]);
        check(json!({}), of(json!({ "drop": ["ALL"] })), &["--bounding-set=-all"]);
        let words = Credentials::new(&PodSecurityContext::default(), &SecurityContext::default()).unwrap();
        assert_eq!(words.capabilities.unwrap(), DEFAULT_CAPABILITIES);
        let privileged = SecurityContext { privileged: Some(true), ..Default::default() };
        assert_eq!(Credentials::new(&PodSecurityContext::default(), &privileged).unwrap().capabilities, None);
    }

    #[test]
    fn the_container_goes_before_the_pod() {
        let pod = json!({ "runAsUser": 1, "runAsGroup": 2, "fsGroup": 3 });
        check(pod.clone(), json!({}), &["--reuid=1", "--regid=2", "--groups=3"]);
        check(pod, json!({ "runAsUser": 5, "allowPrivilegeEscalation": false }), &["--reuid=5", "--no-new-privs"]);
    }

    #[test]
    fn root_is_refused_where_it_is_forbidden() {
        let pod = PodSecurityContext { run_as_non_root: Some(true), ..Default::default() };
        assert!(Credentials::new(&pod, &SecurityContext::default()).unwrap_err().contains("runAsNonRoot"));
    }
}
