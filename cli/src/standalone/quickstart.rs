//! The built-in example: three nodes, three sample backends, and a Service of every type.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the example lies in a checkout. There it is used in place, so that it can be edited.
const CHECKOUT: &str = "deploy/examples/quickstart";

const FILES: [(&str, &str); 3] = [
    ("nodes.yaml", include_str!("../../../deploy/examples/quickstart/nodes.yaml")),
    ("pods.yaml", include_str!("../../../deploy/examples/quickstart/pods.yaml")),
    ("services.yaml", include_str!("../../../deploy/examples/quickstart/services.yaml")),
];

/// A directory of manifests.
#[derive(Debug)]
pub enum Manifests {
    /// It was there.
    Given(PathBuf),
    /// It was written for this run, and is removed with it.
    Written(PathBuf),
}

// === impl Manifests ===

impl Manifests {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Manifests::Given(path) | Manifests::Written(path) => path,
        }
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        if let Manifests::Written(path) = self
            && let Err(error) = fs::remove_dir_all(&*path)
        {
            tracing::warn!(directory = %path.display(), "cannot remove the example: {error}");
        }
    }
}

/// The directory that was asked for, else the example of the checkout, else one written to a temporary directory.
///
/// # Errors
/// When the example cannot be written.
pub fn directory(given: Option<&Path>) -> io::Result<Manifests> {
    if let Some(given) = given {
        return Ok(Manifests::Given(given.to_owned()));
    }
    if Path::new(CHECKOUT).is_dir() {
        return Ok(Manifests::Given(CHECKOUT.into()));
    }
    let directory = std::env::temp_dir().join(format!("portico-quickstart-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let written = Manifests::Written(directory);
    for (name, content) in FILES {
        fs::write(written.path().join(name), content)?;
    }
    Ok(written)
}
