//! Removing a sandbox, whatever state it is in: by what exists, and not by what was written down, so that it works after
//! a crash at any point.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};

use super::{
    netns,
    plan::{BRIDGE, NAMESPACE_PREFIX},
    process::{self, Process},
    state::ROOT,
};

/// How long processes may take to end when asked to. Nothing of what they would save is kept.
const GRACE: Duration = Duration::from_secs(3);
/// Processes that start others while they are being ended take another round.
const ROUNDS: usize = 10;

/// Ends all processes of the sandbox and removes its namespaces, links, mounts and files. What is not there is no error.
/// This process and those it descends from are spared.
///
/// # Errors
/// What could not be removed; the rest is.
pub fn remove_all() -> Result<()> {
    let steps = [end_processes(), remove_namespaces(), remove_links(), remove_files()];
    let failed: Vec<_> = steps.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn end_processes() -> Result<()> {
    for _ in 0..ROUNDS {
        let running = processes();
        if running.is_empty() {
            return Ok(());
        }
        process::end(&running, GRACE)?;
    }
    bail!("processes of the sandbox start faster than they end");
}

/// All processes of the sandbox: what has the marker in its environment, and what is in a network namespace of the sandbox: programs may overwrite
/// their environment, and containers may share the namespace of their node.
pub fn processes() -> Vec<Process> {
    let spared = process::ancestry();
    let namespaces: HashSet<_> = netns::all().iter().filter_map(|name| identity(&netns::path(name))).collect();
    let in_namespace = |process: &Process| {
        identity(Path::new(&format!("/proc/{}/ns/net", process.pid()))).is_some_and(|id| namespaces.contains(&id))
    };
    let candidates = process::all().into_iter().filter(|process| !spared.contains(&process.pid()));
    candidates.filter(|process| process::is_marked(*process) || in_namespace(process)).collect()
}

/// Two files of the same namespace have equal identities.
fn identity(namespace: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(namespace).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn remove_namespaces() -> Result<()> {
    let lines: Vec<_> = netns::all().iter().map(|name| format!("netns delete {name}")).collect();
    netns::ip(None, &lines).context("cannot remove network namespaces")
}

/// Cables end with the namespace at one of their ends, but only some time later; a new sandbox needs their names now.
fn remove_links() -> Result<()> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| name == BRIDGE || name.starts_with(NAMESPACE_PREFIX)) {
        let removed = netns::ip(None, &[format!("link delete {name}")]);
        if Path::new("/sys/class/net").join(&name).exists() {
            removed.with_context(|| format!("cannot remove link {name}"))?;
        }
    }
    Ok(())
}

fn remove_files() -> Result<()> {
    // The last mounted first: mounts lie upon each other.
    for target in mounts()?.iter().rev() {
        umount2(target.as_str(), MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {target}"))?;
    }
    // Removing a directory goes into what is mounted below it, which may be the machine's own files.
    let left = mounts()?;
    ensure!(left.is_empty(), "cannot remove {ROOT}: still mounted are {}", left.join(", "));
    match fs::remove_dir_all(ROOT) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {ROOT}"))
        }
        _ => Ok(()),
    }
}

/// What is mounted in the state directory, in order.
fn mounts() -> Result<Vec<String>> {
    Ok(below(&fs::read_to_string("/proc/self/mountinfo").context("cannot read what is mounted")?, ROOT))
}

/// Mount points (field 5 of each line) below a directory. The kernel writes blanks and the like as octal numbers.
fn below(mountinfo: &str, directory: &str) -> Vec<String> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| Path::new(point).starts_with(directory)).collect()
}

fn unescape(field: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mounted_in_the_directory_is_found_in_order() {
        let mountinfo = "21 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 21 0:5 / /run/portico-sandbox-2 rw - tmpfs tmpfs rw\n\
            31 21 0:6 / /run/portico-sandbox/nodes/a\\040b rw - tmpfs tmpfs rw\n\
            32 31 0:7 / /run/portico-sandbox/nodes/a\\040b/c rw - tmpfs tmpfs rw\n";
        let found = below(mountinfo, "/run/portico-sandbox");
        assert_eq!(found, ["/run/portico-sandbox/nodes/a b", "/run/portico-sandbox/nodes/a b/c"]);
    }
}
