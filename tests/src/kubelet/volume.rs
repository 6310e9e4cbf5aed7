//! The volumes of a Pod: what they hold, and keeping it true while the Pod lives.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::{
    FutureExt as _, Stream, StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{
        ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, Secret, Volume, VolumeProjection,
    },
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::watch, time::Instant};

use super::{
    env::{self, Addresses},
    pods::Wish,
};

/// Directories whose files are replaced all at once.
pub mod atomic;
/// Tokens of service accounts.
pub mod token;

/// How soon a source that is missing or was not to be had is looked for again, if no watch reports it earlier.
const RETRY: Duration = Duration::from_millis(500);
/// How long changes are collected before they are read.
const SETTLE: Duration = Duration::from_millis(50);
/// Directories that are the same on each node of the sandbox: those of the machine. Any other host path is the node's own.
const MACHINE: [&str; 7] = ["/proc", "/sys", "/dev", "/lib", "/usr", "/etc", "/bin"];

/// What a directory of files is to hold, by path below it: contents and mode.
pub type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// The volumes of one Pod.
pub struct Volumes {
    /// To read what they hold.
    pub client: Client,
    /// A directory for this Pod's volumes alone.
    pub directory: PathBuf,
    /// What stands for the root directory of the node.
    pub host: PathBuf,
    /// For the downward API.
    pub addresses: Addresses,
}

// === impl Volumes ===

impl Volumes {
    /// Where a volume is on this machine.
    ///
    /// # Errors
    /// When a host path is not there, or is not of the type that was asked for.
    pub fn path(&self, volume: &Volume) -> anyhow::Result<PathBuf> {
        match &volume.host_path {
            Some(source) => host_path(&self.host, source).with_context(|| format!("volume {:?}", volume.name)),
            None => Ok(self.directory.join(&volume.name)),
        }
    }

    /// Fills the volumes and keeps them true for ever. Tells after each round what is missing, or nothing: the Pod may
    /// start after the first round without anything missing, and keeps what it has when something goes missing later.
    pub async fn keep(self: Arc<Self>, mut wishes: watch::Receiver<Wish>, tell: watch::Sender<Option<String>>) {
        let mut tokens = token::Tokens::default();
        // The volumes of a Pod never change. Each watch begins with the object as it is, so that no change is missed.
        let mut changes = changes(&self.client, &wishes.borrow().pod);
        loop {
            let pod = wishes.borrow_and_update().pod.clone();
            let mut problem = None;
            for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
                if let Err(error) = self.fill(&pod, volume, &mut tokens).await {
                    problem = Some(format!("volume {:?}: {error:#}", volume.name));
                }
            }
            let again = if problem.is_some() { Some(Instant::now() + RETRY) } else { tokens.renewal() };
            tell.send_replace(problem);
            tokio::select! {
                // Those that come together are read together.
                Some(()) = changes.next() => tokio::time::sleep(SETTLE).await,
                () = relabelled(&mut wishes, &pod) => {}
                () = until(again) => {}
            }
            while changes.next().now_or_never().flatten().is_some() {}
        }
    }

    async fn fill(&self, pod: &Pod, volume: &Volume, tokens: &mut token::Tokens) -> anyhow::Result<()> {
        let directory = self.directory.join(&volume.name);
        let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        if volume.host_path.is_some() {
            return self.path(volume).map(drop);
        }
        if volume.empty_dir.is_some() {
            return atomic::empty(&directory, group);
        }
        let mut files = Files::new();
        if let Some(source) = &volume.config_map {
            let from = Source {
                items: source.items.as_deref(),
                optional: source.optional == Some(true),
                mode: mode(source.default_mode),
            };
            files.extend(self.config_map(pod, &source.name, &from).await?);
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let from = Source {
                items: source.items.as_deref(),
                optional: source.optional == Some(true),
                mode: mode(source.default_mode),
            };
            files.extend(self.secret(pod, name, &from).await?);
        } else if let Some(source) = &volume.downward_api {
            files.extend(self.downward(pod, source.items.as_deref().unwrap_or_default(), mode(source.default_mode))?);
        } else if let Some(source) = &volume.projected {
            for projection in source.sources.iter().flatten() {
                files.extend(self.projection(pod, projection, mode(source.default_mode), tokens).await?);
            }
        } else {
            bail!("its type must be one of emptyDir, hostPath, configMap, secret, downwardAPI and projected");
        }
        atomic::write(&directory, &files, group)
    }

    async fn projection(
        &self,
        pod: &Pod,
        projection: &VolumeProjection,
        mode: u32,
        tokens: &mut token::Tokens,
    ) -> anyhow::Result<Files> {
        if let Some(source) = &projection.config_map {
            let from = Source { items: source.items.as_deref(), optional: source.optional == Some(true), mode };
            self.config_map(pod, &source.name, &from).await
        } else if let Some(source) = &projection.secret {
            let from = Source { items: source.items.as_deref(), optional: source.optional == Some(true), mode };
            self.secret(pod, &source.name, &from).await
        } else if let Some(source) = &projection.downward_api {
            self.downward(pod, source.items.as_deref().unwrap_or_default(), mode)
        } else if let Some(source) = &projection.service_account_token {
            let token = tokens.get(&self.client, pod, source).await?;
            Ok(Files::from([(source.path.clone(), (token.into_bytes(), mode))]))
        } else {
            bail!("its sources must be of serviceAccountToken, configMap, secret and downwardAPI")
        }
    }

    async fn config_map(&self, pod: &Pod, name: &str, from: &Source<'_>) -> anyhow::Result<Files> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let found = api.get_opt(name).await?.map(|map| {
            let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
            let binary = map.binary_data.into_iter().flatten().map(|(key, ByteString(value))| (key, value));
            text.chain(binary).collect()
        });
        from.files("configmap", name, found)
    }

    async fn secret(&self, pod: &Pod, name: &str, from: &Source<'_>) -> anyhow::Result<Files> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let found = api.get_opt(name).await?;
        let data =
            |secret: Secret| secret.data.into_iter().flatten().map(|(key, ByteString(value))| (key, value)).collect();
        from.files("secret", name, found.map(data))
    }

    fn downward(&self, pod: &Pod, items: &[DownwardAPIVolumeFile], mode: u32) -> anyhow::Result<Files> {
        let file = |item: &DownwardAPIVolumeFile| {
            let path = item.field_ref.as_ref().map(|field| field.field_path.as_str());
            let path = path.with_context(|| format!("file {:?} of the downward API needs a fieldRef", item.path))?;
            let value = env::field(pod, path, &self.addresses).map_err(anyhow::Error::msg)?;
            Ok((item.path.clone(), (value.into_bytes(), item.mode.map_or(mode, i32::unsigned_abs))))
        };
        items.iter().map(file).collect()
    }
}

/// How the keys of an object become files.
struct Source<'a> {
    items: Option<&'a [KeyToPath]>,
    optional: bool,
    mode: u32,
}

impl Source<'_> {
    /// `found` are the keys of the object, or nothing when it does not exist.
    fn files(&self, kind: &str, name: &str, found: Option<BTreeMap<String, Vec<u8>>>) -> anyhow::Result<Files> {
        let Some(data) = found else {
            return if self.optional { Ok(Files::new()) } else { bail!("{kind} {name:?} not found") };
        };
        let Some(items) = self.items.filter(|items| !items.is_empty()) else {
            return Ok(data.into_iter().map(|(key, value)| (key, (value, self.mode))).collect());
        };
        let mut files = Files::new();
        for item in items {
            match data.get(&item.key) {
                Some(value) => {
                    files.insert(item.path.clone(), (value.clone(), item.mode.map_or(self.mode, i32::unsigned_abs)));
                }
                None if self.optional => {}
                None => bail!("{kind} {name:?} has no key {:?}", item.key),
            }
        }
        Ok(files)
    }
}

fn mode(given: Option<i32>) -> u32 {
    given.map_or(0o644, i32::unsigned_abs)
}

/// A change of any object that the volumes of a Pod show, which need not exist.
fn changes(client: &Client, pod: &Pod) -> SelectAll<BoxStream<'static, ()>> {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        for projection in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            config_maps.extend(projection.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(projection.secret.iter().map(|source| source.name.clone()));
        }
    }
    let namespace = pod.namespace().unwrap_or_default();
    let config_map_api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let secret_api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let config_maps = config_maps.iter().map(|name| seen(watcher::watch_object(config_map_api.clone(), name)));
    let secrets = secrets.iter().map(|name| seen(watcher::watch_object(secret_api.clone(), name)));
    futures::stream::select_all(config_maps.chain(secrets))
}

fn seen<K: Send + 'static>(
    events: impl Stream<Item = Result<Option<K>, watcher::Error>> + Send + 'static,
) -> BoxStream<'static, ()> {
    events.default_backoff().filter_map(async |event| event.ok().map(drop)).boxed()
}

/// Waits until the Pod has other labels or annotations, which are all that the downward API shows and that can change.
async fn relabelled(wishes: &mut watch::Receiver<Wish>, pod: &Pod) {
    let differs = |wish: &Wish| wish.pod.labels() != pod.labels() || wish.pod.annotations() != pod.annotations();
    if wishes.wait_for(differs).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Where a host path is on this machine: below `host`, or the machine's own for what nodes of the sandbox share.
fn host_path(host: &Path, source: &HostPathVolumeSource) -> anyhow::Result<PathBuf> {
    let given = Path::new(&source.path);
    if !given.is_absolute() || given.components().any(|part| part == Component::ParentDir) {
        bail!("hostPath.path {:?} must be absolute and without `..`", source.path);
    }
    let shared = MACHINE.iter().any(|prefix| given.starts_with(prefix)) || given == Path::new("/");
    let path = if shared { given.to_owned() } else { host.join(given.strip_prefix("/")?) };
    let asked = source.type_.as_deref().unwrap_or_default();
    match asked {
        "DirectoryOrCreate" => std::fs::create_dir_all(&path)?,
        "FileOrCreate" if !path.exists() => {
            std::fs::create_dir_all(path.parent().unwrap_or(host))?;
            std::fs::write(&path, "")?;
        }
        // As a container runtime does, which makes a directory of what is not there.
        "" if !path.exists() => std::fs::create_dir_all(&path)?,
        _ => {}
    }
    let fits = match asked {
        "Directory" => path.is_dir(),
        "File" => path.is_file(),
        _ => path.exists(),
    };
    if !fits {
        bail!("hostPath {:?} is not there, or is not a {}", source.path, if asked.is_empty() { "path" } else { asked });
    }
    path.canonicalize().with_context(|| format!("hostPath {:?}", source.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())])
    }

    #[test]
    fn keys_become_files_all_or_those_asked_for() {
        let item =
            KeyToPath { key: "a".to_owned(), path: "deep/x".to_owned(), mode: Some(0o400), ..Default::default() };
        let whole = Source { items: None, optional: false, mode: 0o644 };
        assert_eq!(whole.files("configmap", "c", Some(data())).unwrap().len(), 2);
        let some = Source { items: Some(std::slice::from_ref(&item)), optional: false, mode: 0o644 };
        let expected = Files::from([("deep/x".to_owned(), (b"1".to_vec(), 0o400))]);
        assert_eq!(some.files("configmap", "c", Some(data())).unwrap(), expected);
    }

    #[test]
    fn what_is_missing_is_named_unless_it_is_optional() {
        let item = KeyToPath { key: "z".to_owned(), path: "z".to_owned(), ..Default::default() };
        let of = |optional| Source { items: Some(std::slice::from_ref(&item)), optional, mode: 0o644 };
        assert_eq!(of(false).files("secret", "s", None).unwrap_err().to_string(), "secret \"s\" not found");
        assert_eq!(
            of(false).files("secret", "s", Some(data())).unwrap_err().to_string(),
            "secret \"s\" has no key \"z\""
        );
        assert_eq!(of(true).files("secret", "s", None).unwrap(), Files::new());
        assert_eq!(of(true).files("secret", "s", Some(data())).unwrap(), Files::new());
    }

    #[test]
    fn host_paths_are_those_of_the_node_except_what_all_nodes_share() {
        let host = tempfile::tempdir().unwrap();
        let path = |path: &str, type_: &str| {
            host_path(host.path(), &HostPathVolumeSource { path: path.to_owned(), type_: Some(type_.to_owned()) })
        };
        assert_eq!(
            path("/var/lib/x", "DirectoryOrCreate").unwrap(),
            host.path().canonicalize().unwrap().join("var/lib/x")
        );
        assert_eq!(path("/proc", "Directory").unwrap(), Path::new("/proc"));
        assert!(path("/var/lib/none", "Directory").unwrap_err().to_string().contains("not a Directory"));
        assert!(path("/var/../etc", "").unwrap_err().to_string().contains("without `..`"));
    }
}
