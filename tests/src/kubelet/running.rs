//! The containers that run on a node, for who asks the kubelet about them by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::process::Access;

/// What a container is called in requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Namespace of the Pod.
    pub namespace: String,
    /// The Pod.
    pub pod: String,
    /// Name within the Pod.
    pub container: String,
}

/// A run of a container.
#[derive(Debug, Clone)]
struct Run {
    /// Its log, which no other run has.
    log: PathBuf,
    access: Access,
}

/// All that run now. Cloning is cheap, and all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<BTreeMap<Name, Run>>>);

/// Dropping it says that the run has ended.
#[derive(Debug)]
pub struct Listed {
    running: Running,
    name: Name,
    log: PathBuf,
}

// === impl Running ===

impl Running {
    /// Lists a run until the answer is dropped.
    #[must_use]
    pub fn list(&self, name: Name, log: PathBuf, access: Access) -> Listed {
        self.lock().insert(name.clone(), Run { log: log.clone(), access });
        Listed { running: self.clone(), name, log }
    }

    /// The way into a container, if it runs.
    pub fn access(&self, name: &Name) -> Option<Access> {
        self.lock().get(name).map(|run| run.access.clone())
    }

    /// Whether the run that writes this log goes on.
    pub fn writes(&self, name: &Name, log: &Path) -> bool {
        self.lock().get(name).is_some_and(|run| run.log == log)
    }

    /// Changes are single steps, so what a task that panicked leaves is whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut runs = self.running.lock();
        // A Pod of the same name may have come meanwhile.
        if runs.get(&self.name).is_some_and(|run| run.log == self.log) {
            runs.remove(&self.name);
        }
    }
}
