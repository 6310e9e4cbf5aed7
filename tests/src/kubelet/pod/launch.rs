//! From a container's description to what it takes to start it: image, command, environment, credentials and mounts.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};
use kube::ResourceExt as _;
use nix::sys::signal::Signal;

use super::Context;
use crate::kubelet::{
    env::{self, Sources, Variables},
    image::{self, Image},
    process::{Credentials, Launch, Mount},
};

/// A container that can be started.
#[derive(Debug)]
pub struct Prepared {
    /// How.
    pub launch: Launch,
    /// What asks it to end.
    pub stop: Signal,
    /// File where it may say why it ended.
    pub message: PathBuf,
}

/// Why a container cannot be started at present.
#[derive(Debug)]
pub struct Refusal {
    first: &'static str,
    then: &'static str,
    /// What is wrong.
    pub message: String,
}

// === impl Refusal ===

impl Refusal {
    /// The reason in one word, which is another one when it has been given before.
    pub fn reason(&self, before: u32) -> &'static str {
        if before == 0 { self.first } else { self.then }
    }

    fn image(message: String) -> Self {
        Self { first: "ErrImagePull", then: "ImagePullBackOff", message }
    }

    fn config(message: String) -> Self {
        Self { first: "CreateContainerConfigError", then: "CreateContainerConfigError", message }
    }
}

/// Prepares a run of a container.
///
/// # Errors
/// When there is no such image, or something that the container refers to is missing or wrong.
pub async fn prepare(context: &Context, container: &Container, run: i32) -> Result<Prepared, Refusal> {
    let pod = &context.pod;
    let spec = pod.spec.clone().unwrap_or_default();
    let portico = &context.kubelet.config.portico;
    let image = image::find(container.image.as_deref().unwrap_or_default(), portico).map_err(Refusal::image)?;
    let host_name = spec.host_network != Some(true);
    let hostname = if host_name {
        spec.hostname.clone().unwrap_or_else(|| pod.name_any())
    } else {
        context.kubelet.config.node.clone()
    };
    // Unknown Services would be missing from the environment for good.
    let _ = context.kubelet.services.wait_until_ready().await;
    let services = context.kubelet.services.state().iter().map(|service| (**service).clone()).collect();
    let sources = Sources::read(&context.kubelet.client, pod, container, services).await;
    let sources = sources.map_err(|error| Refusal::config(error.to_string()))?;
    let mut variables = env::resolve(pod, container, &context.addresses, &sources).map_err(Refusal::config)?;
    if !variables.iter().any(|(name, _)| name == "HOSTNAME") {
        variables.insert(0, ("HOSTNAME".to_owned(), hostname.clone()));
    }
    let security = container.security_context.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let credentials = Credentials::new(&of_pod, &security).map_err(Refusal::config)?;
    let directory = context.directory.join("containers").join(&container.name);
    let files = files(context, &spec, &hostname, &directory).map_err(|error| Refusal::config(format!("{error:#}")))?;
    let mounts = mounts(context, &spec, container, &image, &variables, files);
    let mounts = mounts.map_err(|error| Refusal::config(format!("{error:#}")))?;
    let log = context.log(&container.name, run);
    let launch = Launch {
        pod: pod.uid().unwrap_or_default(),
        network: context.network.clone(),
        hostname: Some(hostname),
        mounts,
        privileged: security.privileged == Some(true),
        read_only_root: security.read_only_root_filesystem == Some(true),
        credentials,
        working_directory: container
            .working_dir
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "/".to_owned()),
        command: command(&image, container, &variables),
        variables,
        log,
        directory: directory.clone(),
    };
    Ok(Prepared { launch, stop: image.stop, message: directory.join("termination-log") })
}

/// A command replaces the image's whole command line, arguments only its arguments.
fn command(image: &Image, container: &Container, variables: &Variables) -> Vec<String> {
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let expanded = |list: Vec<String>| list.into_iter().map(|word| env::expand(&word, variables)).collect::<Vec<_>>();
    let (command, arguments) = match (given(&container.command), given(&container.args)) {
        (Some(command), arguments) => (expanded(command), expanded(arguments.unwrap_or_default())),
        (None, Some(arguments)) => (image.entrypoint.clone(), expanded(arguments)),
        (None, None) => (image.entrypoint.clone(), image.arguments.clone()),
    };
    [command, arguments].concat()
}

/// Files that the kubelet makes for a container, with where the container has them.
fn files(
    context: &Context,
    spec: &PodSpec,
    hostname: &str,
    directory: &std::path::Path,
) -> anyhow::Result<Vec<(PathBuf, String)>> {
    std::fs::create_dir_all(directory)?;
    let file = |name: &str, contents: &str, target: &str| -> anyhow::Result<(PathBuf, String)> {
        let path = directory.join(name);
        std::fs::write(&path, contents)?;
        Ok((path.canonicalize()?, target.to_owned()))
    };
    let mut files = vec![
        file("hosts", &hosts(spec, hostname, &context.addresses.pod), "/etc/hosts")?,
        file("hostname", &format!("{hostname}\n"), "/etc/hostname")?,
        file("termination-log", "", "/dev/termination-log")?,
    ];
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory.join("termination-log"), std::fs::Permissions::from_mode(0o666))?;
    let servers = name_servers(context);
    if let Some(contents) = resolv_conf(spec, &context.pod.namespace().unwrap_or_default(), &servers) {
        files.push(file("resolv.conf", &contents, "/etc/resolv.conf")?);
    }
    Ok(files)
}

/// The cluster's name servers: those of the kubelet's configuration, else the Service that they usually are.
fn name_servers(context: &Context) -> Vec<String> {
    let configured = &context.kubelet.config.cluster_dns;
    if !configured.is_empty() {
        return configured.iter().map(ToString::to_string).collect();
    }
    let services = context.kubelet.services.state();
    let dns = services
        .iter()
        .find(|service| service.namespace().as_deref() == Some("kube-system") && service.name_any() == "kube-dns");
    dns.and_then(|service| service.spec.as_ref()?.cluster_ips.clone()).unwrap_or_default()
}

fn hosts(spec: &PodSpec, hostname: &str, addresses: &[IpAddr]) -> String {
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        hosts += &format!("{address}\t{hostname}\n");
    }
    for alias in spec.host_aliases.iter().flatten() {
        hosts += &format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
    }
    hosts
}

/// The resolver's configuration, or `None` for that of the machine: the policy says so, or the cluster has no DNS.
fn resolv_conf(spec: &PodSpec, namespace: &str, servers: &[String]) -> Option<String> {
    let own = spec.dns_config.clone().unwrap_or_default();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let in_cluster = match policy {
        "ClusterFirst" => spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let (mut servers, mut search, mut options) = match (policy, in_cluster && !servers.is_empty()) {
        ("None", _) => (Vec::new(), Vec::new(), Vec::new()),
        (_, false) => return None,
        (_, true) => {
            let search = [format!("{namespace}.svc.cluster.local"), "svc.cluster.local".into(), "cluster.local".into()];
            (servers.to_vec(), search.to_vec(), vec!["ndots:5".to_owned()])
        }
    };
    servers.extend(own.nameservers.into_iter().flatten());
    search.extend(own.searches.into_iter().flatten());
    for option in own.options.into_iter().flatten() {
        let name = option.name.unwrap_or_default();
        options.retain(|other: &String| other.split(':').next() != Some(&name));
        options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
    }
    let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let line = |word: &str, values: Vec<String>| match values.is_empty() {
        true => String::new(),
        false => format!("{word} {}\n", values.join(" ")),
    };
    Some(servers + &line("search", search) + &line("options", options))
}

/// Everything that is mounted, outer paths first.
fn mounts(
    context: &Context,
    spec: &PodSpec,
    container: &Container,
    image: &Image,
    variables: &Variables,
    files: Vec<(PathBuf, String)>,
) -> anyhow::Result<Vec<Mount>> {
    let plain = |source, target, read_only| Mount { source, target, read_only, follows_host: false };
    let mut mounts: Vec<Mount> = files.into_iter().map(|(source, target)| plain(source, target, false)).collect();
    for (source, target) in &image.files {
        let source = source.canonicalize().with_context(|| format!("the image's file {}", source.display()))?;
        mounts.push(plain(source, (*target).to_owned(), true));
    }
    for mount in container.volume_mounts.iter().flatten() {
        mounts.retain(|other| other.target != mount.mount_path);
        mounts.push(Mount {
            source: source(context, spec, mount, variables)?,
            target: mount.mount_path.clone(),
            read_only: mount.read_only == Some(true),
            follows_host: mount.mount_propagation.as_deref() == Some("HostToContainer"),
        });
    }
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(mounts)
}

fn source(context: &Context, spec: &PodSpec, mount: &VolumeMount, variables: &Variables) -> anyhow::Result<PathBuf> {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
    let volume = volume.with_context(|| format!("volumeMount {:?} names no volume", mount.name))?;
    if mount.mount_propagation.as_deref() == Some("Bidirectional") {
        bail!("volumeMount {:?}: mountPropagation must be None or HostToContainer in the sandbox", mount.name);
    }
    let path = context.volumes.path(volume)?;
    let path = path.canonicalize().with_context(|| format!("volume {:?}", mount.name))?;
    let below =
        mount.sub_path_expr.as_ref().map(|below| env::expand(below, variables)).or_else(|| mount.sub_path.clone());
    let Some(below) = below.filter(|below| !below.is_empty()) else { return Ok(path) };
    let whole = path.join(&below);
    if !whole.exists() {
        std::fs::create_dir_all(&whole)?;
    }
    let whole = whole.canonicalize()?;
    if !whole.starts_with(&path) {
        bail!("volumeMount {:?}: subPath {below:?} must not lead out of the volume", mount.name);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check_command(container: Value, expected: &[&str]) {
        let mut whole = json!({ "name": "main" });
        whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let container = serde_json::from_value(whole).unwrap();
        let image = image::find("nginx", Path::new("/portico")).unwrap();
        assert_eq!(command(&image, &container, &vec![("A".to_owned(), "1".to_owned())]), expected);
    }

    #[test]
    fn a_command_replaces_the_image_and_arguments_its_arguments() {
        check_command(json!({}), &["nginx", "-g", "daemon off;"]);
        check_command(json!({ "args": ["-v"] }), &["nginx", "-v"]);
        check_command(json!({ "command": ["echo"] }), &["echo"]);
        check_command(json!({ "command": ["echo"], "args": ["$(A)", "$$(A)"] }), &["echo", "1", "$(A)"]);
    }

    #[track_caller]
    fn check_dns(spec: Value, servers: &[&str], expected: Option<&str>) {
        let mut whole = json!({ "containers": [] });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let servers: Vec<String> = servers.iter().map(|server| (*server).to_owned()).collect();
        let spec = serde_json::from_value(whole).unwrap();
        assert_eq!(resolv_conf(&spec, "shop", &servers).as_deref(), expected);
    }

    #[test]
    fn names_are_asked_in_the_cluster_where_the_policy_says_so() {
        let cluster =
            "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
        check_dns(json!({}), &["10.96.0.10"], Some(cluster));
        check_dns(json!({}), &[], None);
        check_dns(json!({ "hostNetwork": true }), &["10.96.0.10"], None);
        check_dns(
            json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" }),
            &["10.96.0.10"],
            Some(cluster),
        );
        check_dns(json!({ "dnsPolicy": "Default" }), &["10.96.0.10"], None);
        let own = json!({ "dnsPolicy": "None", "dnsConfig": { "nameservers": ["1.2.3.4"], "options": [{ "name": "ndots", "value": "1" }] } });
        check_dns(own, &["10.96.0.10"], Some("nameserver 1.2.3.4\noptions ndots:1\n"));
    }
}
