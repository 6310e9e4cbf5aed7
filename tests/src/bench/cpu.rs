//! Processor time of a process and its children, and which processors may be used.
//!
//! `/proc/PID/task/TID/schedstat` holds the nanoseconds a thread has run, the nanoseconds it was ready to run but had
//! to wait, and the number of its time slices. The first is what is compared; the second tells whether the machine
//! was busy with something else.

use std::{fs, io, path::Path};

use anyhow::{Context, Result, bail};

/// Processor time since a process began, over its living threads and those of its children, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time spent running.
    pub ran: u64,
    /// Time spent ready to run while the processor did something else.
    pub waited: u64,
}

/// The processors of one measurement.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Where the proxies run.
    pub proxy: usize,
    /// Where backends and clients run.
    pub load: usize,
}

impl Usage {
    /// What was used from `earlier` until this.
    ///
    /// A thread that ended in between takes its time along, so the difference can be too small, but not negative.
    pub fn since(self, earlier: Self) -> Self {
        Self { ran: self.ran.saturating_sub(earlier.ran), waited: self.waited.saturating_sub(earlier.waited) }
    }
}

/// Reads the processor time of a process and, recursively, of its children.
///
/// # Errors
///
/// Fails if the process is gone or the kernel keeps no such statistics.
pub fn usage(pid: u32) -> Result<Usage> {
    let mut total = Usage::default();
    add_process(pid, &mut total)
        .with_context(|| format!("read processor time of process {pid}: is it still running, and is /proc mounted?"))?;
    Ok(total)
}

/// The first two processors this process may run on.
///
/// # Errors
///
/// Fails if there is only one: clients and proxy on one processor would measure each other.
pub fn cores() -> Result<Cores> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("find Cpus_allowed_list in /proc/self/status")?;
    match allowed(list.trim())?[..] {
        [proxy, load, ..] => Ok(Cores { proxy, load }),
        _ => {
            bail!("two processors are needed, one for the proxy and one for the load; this process may use only {list}")
        }
    }
}

/// What the kernel says of a thread that was listed and has ended since: its files are gone, or have nothing to read.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn add_process(pid: u32, total: &mut Usage) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        match fs::read_to_string(task.join("schedstat")) {
            Ok(text) => add_thread(&text, total)?,
            // The thread ended between being listed and being read.
            Err(error) if has_ended(&error) && Path::new(&format!("/proc/{pid}")).exists() => {
                continue;
            }
            Err(error) => return Err(error),
        }
        for child in fs::read_to_string(task.join("children")).unwrap_or_default().split_whitespace() {
            if let Ok(child) = child.parse() {
                match add_process(child, total) {
                    Err(error) if has_ended(&error) => {}
                    added => added?,
                }
            }
        }
    }
    Ok(())
}

fn add_thread(schedstat: &str, total: &mut Usage) -> io::Result<()> {
    let mut fields = schedstat.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(ran)), Some(Ok(waited))) = (fields.next(), fields.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("schedstat holds {schedstat:?}")));
    };
    total.ran += ran;
    total.waited += waited;
    Ok(())
}

/// Expands a list as the kernel writes it, such as `0-2,5`.
fn allowed(list: &str) -> Result<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |number: &str| number.parse::<usize>().with_context(|| format!("read processor list {list:?}"));
        cores.extend(parse(first)?..=parse(last)?);
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_expand() {
        assert_eq!(allowed("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(allowed("3").unwrap(), [3]);
        assert!(allowed("").is_err());
        assert!(allowed("0-x").is_err());
    }

    #[test]
    fn a_thread_adds_to_the_total() {
        let mut total = Usage { ran: 1, waited: 1 };
        add_thread("10 20 3\n", &mut total).unwrap();
        assert_eq!(total, Usage { ran: 11, waited: 21 });
        assert!(add_thread("10\n", &mut total).is_err());
    }

    #[test]
    fn this_process_has_used_some_time_and_uses_more() {
        let before = usage(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while usage(std::process::id()).unwrap().since(before).ran < 1_000_000 {
            sum = (0..10_000_u64).fold(sum, |sum, next| std::hint::black_box(sum ^ next));
        }
        assert!(before.ran > 0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(usage(child.id()).is_err());
    }
}
