//! Where objects come from. Every source feeds the same events into one channel.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::mpsc;

pub mod address_pool;
pub mod kube;
pub mod manifest;
pub mod object;

use crate::problem::{ByObject, Problem};
use object::{Event, Kind};

/// A source of objects.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Manifest(manifest::Source),
    /// A cluster.
    Kube(kube::Source),
}

/// Changes that belong together.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// All that is wrong with the source now; `None` if that did not change.
    pub reports: Option<Arc<Reports>>,
}

/// What a source has to say beside its objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// Problems of the source as a whole, such as files that do not parse.
    pub source: Vec<Problem>,
    /// The kinds that cannot be watched at present.
    pub unwatched: BTreeSet<Kind>,
    /// Problems of single objects.
    pub objects: ByObject,
    /// How many objects of kinds that are not read there are, by kind.
    pub others: BTreeMap<String, u64>,
}

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest directory cannot be read.
    #[error("--manifests {directory:?} cannot be listed; give a readable directory")]
    Directory {
        /// As given.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are no credentials for a cluster.
    #[error("no cluster to read from; give --kubeconfig or --manifests, or run in a Pod with a service account")]
    Credentials {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// === impl Source ===

impl Source {
    /// Whose objects these are: the UID of the cluster, and for a directory its path, so that agents never mix the state
    /// of two. Waits for the cluster to answer.
    pub async fn cluster_uid(&self) -> String {
        match self {
            Source::Manifest(source) => source.cluster_uid(),
            Source::Kube(source) => source.cluster_uid().await,
        }
    }

    /// The client of the cluster, if there is one.
    pub fn client(&self) -> Option<::kube::Client> {
        match self {
            Source::Manifest(_) => None,
            Source::Kube(source) => Some(source.client()),
        }
    }

    /// Sends everything there is, and then every change, until nobody listens any more.
    ///
    /// # Errors
    /// An [`Error`] if the source cannot be read at all. What fails later is reported and tried again.
    pub async fn run(self, batches: mpsc::Sender<Batch>) -> Result<(), Error> {
        match self {
            Source::Manifest(source) => source.run(batches).await,
            Source::Kube(source) => source.run(batches).await,
        }
    }
}
