//! Certificate and key in files. Reading them again is cheap and works on every file system, so nothing watches them.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::watch;

use super::{Material, publish};

/// The files are read this often.
const EVERY: Duration = Duration::from_secs(5);

/// Reads both files.
///
/// # Errors
/// Which of them cannot be read.
pub async fn read(certificate: &Path, key: &Path) -> Result<Material, String> {
    let text = async |option: &str, path: &Path| {
        let content: io::Result<String> = tokio::fs::read_to_string(path).await;
        content.map_err(|error| format!("{option} {path:?} cannot be read: {error}"))
    };
    Ok(Material {
        certificate: text("--discovery-certificate", certificate).await?,
        key: text("--discovery-key", key).await?,
    })
}

/// Publishes what the files hold into `current`, now and whenever it changes, without end.
pub async fn follow(certificate: PathBuf, key: PathBuf, current: watch::Sender<Option<Material>>) {
    let mut said = None;
    loop {
        match read(&certificate, &key).await {
            Ok(material) => {
                said = None;
                publish(&current, material);
            }
            Err(error) => {
                if said.as_ref() != Some(&error) {
                    tracing::warn!("{error}; what was read last stays in force");
                    said = Some(error);
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}
