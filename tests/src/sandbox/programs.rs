//! The programs a cluster consists of. `scripts/cluster-tools` builds them; those of another origin are taken if their
//! version fits.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// What a sandbox needs.
pub const ALL: [&str; 5] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl"];

/// A set of programs of one Go module in `tests/cluster`.
struct Set {
    name: &'static str,
    programs: &'static [&'static str],
    go_mod: &'static str,
    module: &'static str,
}

const SETS: [Set; 4] = [
    Set {
        name: "kubernetes",
        programs: &["kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl"],
        go_mod: include_str!("../../cluster/kubernetes/go.mod"),
        module: "k8s.io/kubernetes",
    },
    Set {
        name: "etcd",
        programs: &["etcd"],
        go_mod: include_str!("../../cluster/etcd/go.mod"),
        module: "go.etcd.io/etcd/server/v3",
    },
    Set {
        name: "jaeger",
        programs: &["jaeger"],
        go_mod: include_str!("../../cluster/jaeger/go.mod"),
        module: "github.com/jaegertracing/jaeger",
    },
    Set {
        name: "coredns",
        programs: &["coredns"],
        go_mod: include_str!("../../cluster/coredns/go.mod"),
        module: "github.com/coredns/coredns",
    },
];

/// Path of a program: in `$KUBEBUILDER_ASSETS`, in the cache of tools, or in `PATH`, where the first and the last count
/// only if they are of the same minor version as what the scripts would build.
///
/// # Errors
/// When there is none that fits, with what to run.
pub fn find(program: &str) -> Result<PathBuf> {
    let set = SETS.iter().find(|set| set.programs.contains(&program)).context("a program of a cluster")?;
    let version = required(set.go_mod, set.module).context("go.mod names the version of its tool")?;
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(|dir| PathBuf::from(dir).join(program));
    if let Some(path) = assets.filter(|path| fits(path, version)) {
        return Ok(path);
    }
    let cached = cache().map(|cache| cache.join(format!("{}-{version}/bin/{program}", set.name)));
    if let Some(path) = cached.filter(|path| path.exists()) {
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| fits(path, version));
    match installed {
        Some(path) => Ok(path),
        None => bail!("{program} {version} is not installed: run `scripts/setup test`, or `scripts/cluster-tools`"),
    }
}

/// Where the scripts keep their tools.
fn cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("portico/tools"))
}

/// The version of a module that a go.mod requires, without the `v`.
fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let line = line.trim();
        let (name, rest) = line.strip_prefix("require ").unwrap_or(line).split_once(' ')?;
        (name == module).then(|| rest.split(' ').next())??.strip_prefix('v')
    })
}

/// Whether a program is there and says a version of the wanted `major.minor`.
fn fits(path: &Path, wanted: &str) -> bool {
    let arguments: &[&str] = if path.ends_with("kubectl") { &["version", "--client"] } else { &["--version"] };
    let output = Command::new(path).args(arguments).output();
    output.is_ok_and(|output| says_minor(&String::from_utf8_lossy(&output.stdout), wanted))
}

fn says_minor(said: &str, wanted: &str) -> bool {
    let minor = |version: &str| {
        let mut parts = version.split('.');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    let mut words = said.split_whitespace().map(|word| word.trim_start_matches('v'));
    words.find(|word| word.starts_with(|first: char| first.is_ascii_digit())).and_then(minor) == minor(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_in_a_set() {
        for program in ALL {
            assert!(SETS.iter().any(|set| set.programs.contains(&program)), "{program}");
        }
    }

    #[test]
    fn every_module_says_the_version_of_its_programs() {
        for set in &SETS {
            let version = required(set.go_mod, set.module).unwrap_or_else(|| panic!("{}", set.name));
            assert!(version.split('.').count() == 3, "{}: {version}", set.name);
        }
    }

    #[test]
    fn a_version_fits_when_major_and_minor_are_equal() {
        for (said, wanted, fits) in [
            ("Kubernetes v1.36.1\n", "1.36.3", true),
            ("Kubernetes v1.35.3\n", "1.36.3", false),
            ("Client Version: v1.36.0\nKustomize Version: v5.5.0\n", "1.36.3", true),
            ("etcd Version: 3.7.3\nGit SHA: abc\n", "3.7.3", true),
            ("", "1.36.3", false),
        ] {
            assert_eq!(says_minor(said, wanted), fits, "{said}");
        }
    }
}
