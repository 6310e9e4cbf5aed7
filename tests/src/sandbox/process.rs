//! Processes that outlive who started them, and finding them again without taking a stranger for one of them.

use std::{
    fmt,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::state::{ROOT, State};

/// Every process of a sandbox has this in its environment, and its children inherit it.
pub const MARKER: (&str, &str) = ("PORTICO_SANDBOX", ROOT);

/// How often it is looked whether a process that is to end has ended. Most are not children of who asks.
const POLL: Duration = Duration::from_millis(20);

/// `USER_HZ`: what programs see is counted in these, whatever the kernel counts in itself.
const TICKS_PER_SECOND: u64 = 100;

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    /// When it started, in ticks since the machine did.
    started: u64,
}

/// With whom a sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It stays until it is taken down.
    Nobody,
    /// It is removed when this process has ended.
    Process(Process),
}

// === impl Process ===

impl Process {
    /// The process of this number, if there is one that has not ended.
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: running_since(&stat)? })
    }

    /// This process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn own() -> Result<Self> {
        let pid = i32::try_from(std::process::id()).context("a process id is positive")?;
        Self::find(pid).context("cannot read /proc/self/stat")
    }

    /// Its number.
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// When it started, in ticks since the machine did.
    pub fn started(self) -> u64 {
        self.started
    }

    /// Whether it has not ended. One that has, and that nobody has waited for, has ended.
    pub fn is_running(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Processor time that it has used so far, with that of its children that have ended; `None` if it has ended itself.
    pub fn spent(self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The name may hold blanks and brackets. The fields behind it are counted from the third; from the 14th on
        // (proc(5): utime, stime, cutime, cstime) they are ticks.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: u64 = fields.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        self.is_running().then(|| Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
    }

    fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.pid, self.started)
    }
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(pid, started)| Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? }));
        parsed.ok_or_else(|| format!("'{text}' is not PID:START"))
    }
}

/// Starts a process in a session of its own, with its output in a log, and writes down that it runs. A program of the
/// same name that runs already is left alone.
///
/// # Errors
/// When it cannot be started.
pub fn start(state: &State, name: &str, command: &Command, stdin: Stdio) -> Result<()> {
    if state.is_running(name) {
        return Ok(());
    }
    let log = File::options().create(true).append(true).open(state.log(name));
    let log = log.with_context(|| format!("cannot open the log of {name}"))?;
    // As a child that leads no group, setsid becomes the program instead of starting it: the number stays.
    let child = Command::new("setsid")
        .arg(command.get_program())
        .args(command.get_args())
        .env(MARKER.0, MARKER.1)
        .stdin(stdin)
        .stdout(log.try_clone().context("cannot share a log")?)
        .stderr(log)
        .current_dir("/")
        .spawn()
        .with_context(|| format!("cannot start {name} by setsid (of util-linux)"))?;
    let pid = i32::try_from(child.id()).context("a process id is positive")?;
    let Some(process) = Process::find(pid) else {
        bail!("{name} ended at once: {}", last_lines(&state.log(name)));
    };
    state.record(name, process)
}

/// Ends processes: asks, and kills those that are still there after `grace`. Returns when all have ended.
///
/// # Errors
/// When one cannot be signalled, or does not end although it was killed.
pub fn end(processes: &[Process], grace: Duration) -> Result<()> {
    for process in processes {
        process.signal(Signal::SIGTERM)?;
    }
    if wait(processes, grace) {
        return Ok(());
    }
    for process in processes {
        process.signal(Signal::SIGKILL)?;
    }
    if !wait(processes, Duration::from_secs(10)) {
        let left = processes.iter().filter(|process| process.is_running()).map(|process| process.pid.to_string());
        bail!("processes do not end although they were killed: {}", left.collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// All processes, as far as they can be told; those that end meanwhile are left out.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::find(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Whether a process has the marker in its environment.
pub fn is_marked(process: Process) -> bool {
    let wanted = format!("{}={}", MARKER.0, MARKER.1);
    let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// This process and those it descends from.
pub fn ancestry() -> Vec<i32> {
    let mut found = Vec::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| *pid > 0) {
        found.push(pid);
        next = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| parent(&stat));
    }
    found
}

/// Waits between two looks at something that nobody tells of.
#[expect(
    clippy::disallowed_methods,
    reason = "what removes a sandbox also runs where no runtime is, such as in a drop"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The last lines of a log, for an error.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(8)..].join("\n  ");
    format!("{} ends with\n  {last}", log.display())
}

fn wait(processes: &[Process], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while processes.iter().any(|process| process.is_running()) {
        if Instant::now() >= deadline {
            return false;
        }
        pause(POLL);
    }
    true
}

/// Field 22 of `/proc/PID/stat`, unless the state (field 3) says that the process has ended. The name before them may
/// hold blanks and parentheses.
fn running_since(stat: &str) -> Option<u64> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    if ended { None } else { fields.get(19)?.parse().ok() }
}

/// Field 4 of `/proc/PID/stat`.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 2 3";

    #[test]
    fn what_a_process_is_called_does_not_confuse_its_fields() {
        assert_eq!(running_since(STAT), Some(123_456));
        assert_eq!(parent(STAT), Some(7));
        assert_eq!(running_since(&STAT.replace(" S ", " Z ")), None, "it has ended");
    }

    #[test]
    fn a_later_process_of_the_same_number_is_another_one() {
        let own = Process::own().unwrap();
        assert!(own.is_running());
        assert!(!Process { started: own.started + 1, ..own }.is_running());
        assert_eq!(own.to_string().parse(), Ok(own));
    }

    #[test]
    fn a_process_descends_from_itself_and_from_the_first() {
        let ancestry = ancestry();
        assert_eq!(ancestry.first(), i32::try_from(std::process::id()).ok().as_ref());
        assert!(ancestry.len() > 1, "{ancestry:?}");
    }
}
