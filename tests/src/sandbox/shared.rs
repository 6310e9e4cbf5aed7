//! The sandbox that all tests of a program share. It ends with the program, however that ends: Rust's test programs say
//! nothing when their last test is over.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::sync::OnceCell;

use crate::binary;

use super::{
    Sandbox,
    plan::Plan,
    process::{Owner, Process},
    state::Lock,
};

/// As many nodes as zones.
pub const NODES: u8 = 3;

/// How long other users of the machine's only sandbox are waited for.
const PATIENCE: Duration = Duration::from_secs(900);

static SHARED: OnceCell<Sandbox> = OnceCell::const_new();

/// The sandbox of this test program, which the first test that asks brings up.
///
/// # Panics
/// When it cannot be brought up: without root, or without the programs it consists of.
pub async fn get() -> &'static Sandbox {
    let sandbox = SHARED.get_or_try_init(|| up(Vec::new())).await;
    sandbox.unwrap_or_else(|error| panic!("cannot bring the sandbox up: {error:#}"))
}

/// A sandbox of its own for a test program that wants another one, with kube-proxy on these nodes.
///
/// # Errors
/// Those of [`Sandbox::up`].
pub async fn up(kube_proxy: Vec<u8>) -> Result<Sandbox> {
    up_with_dns(kube_proxy, Vec::new()).await
}

/// As [`up`], where kubelets give Pods these name servers.
///
/// # Errors
/// Those of [`Sandbox::up`].
pub async fn up_with_dns(kube_proxy: Vec<u8>, cluster_dns: Vec<IpAddr>) -> Result<Sandbox> {
    let portico = binary::path();
    let program = portico.with_file_name("sandbox");
    let plan = Plan { nodes: NODES, kube_proxy, cluster_dns, portico, program };
    let say = |what: &str| eprintln!("sandbox: {what}");
    let lock = tokio::task::spawn_blocking(move || Lock::take(PATIENCE, say)).await.context("the lock's thread")??;
    Sandbox::up(plan, lock, Owner::Process(Process::own()?), say).await
}
