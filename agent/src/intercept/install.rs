//! Rules and routes, as the kernel has them.

use std::time::Duration;

use ipnet::IpNet;

use super::{
    program::{APPLY, APPLY_TERSE, Error, ip, nft, run},
    ruleset::Ruleset,
    script::{self, CAUGHT, MASK, Ports},
};

/// The routing table that delivers caught packets here, and the priority of the rule that leads to it. Both are 0x5050
/// and 0x50 in decimal.
const ROUTES: (u32, u32) = (20_560, 80);

/// Marks our routes in the main table: a number that nobody else uses for the origin of routes.
const ORIGIN: u32 = 0x50;

/// The rules of this process.
#[derive(Debug)]
pub struct Installer {
    ports: Ports,
    lease: Option<Duration>,
    installed: Option<Installed>,
    /// Another agent of this node has installed its own rules, which are none of our business.
    replaced: bool,
}

#[derive(Debug)]
struct Installed {
    ruleset: Ruleset,
    /// The table without elements, as the kernel printed it after it was installed.
    table: String,
}

/// What a look at the rules has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// They are as they were.
    Good,
    /// They were removed or changed, and are to be installed again.
    Broken,
    /// Those of another agent are in their place.
    Replaced,
}

// === impl Installer ===

impl Installer {
    /// Has installed nothing. Rules without a renewal for `lease` are inert; without one they stay in force.
    pub fn new(ports: Ports, lease: Option<Duration>) -> Self {
        Self { ports, lease, installed: None, replaced: false }
    }

    /// Tries whether rules can be installed, and changes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn probe(&self) -> Result<(), Error> {
        let script = script::replace(&Ruleset::default(), &self.ports, self.lease);
        nft(&["--check", "-f", "-"], &script).await.map(drop)
    }

    /// Whether there are rules of this process.
    pub fn is_installed(&self) -> bool {
        self.installed.is_some()
    }

    /// Makes `ruleset` what is in force: by the difference to what was, else as a whole.
    ///
    /// # Errors
    /// [`Error`]; what was in force stays so.
    pub async fn apply(&mut self, ruleset: Ruleset) -> Result<(), Error> {
        if self.replaced {
            return Ok(());
        }
        if let Some(installed) = &mut self.installed {
            let update = script::update(&installed.ruleset, &ruleset);
            if update.is_empty() {
                return Ok(());
            }
            match nft(APPLY, &update).await {
                Ok(_) => {
                    let known = std::mem::replace(&mut installed.ruleset, ruleset);
                    let new: Vec<IpNet> =
                        installed.ruleset.service_ranges.difference(&known.service_ranges).copied().collect();
                    return self.reach(&new).await;
                }
                Err(error) => {
                    if self.renew().await? == Health::Replaced {
                        return Ok(());
                    }
                    tracing::warn!("packet rules are not as they were left: {error}; installing them anew");
                }
            }
        }
        self.install(ruleset).await
    }

    /// Installs `ruleset` as a whole, and the routes with it.
    ///
    /// # Errors
    /// [`Error`].
    async fn install(&mut self, ruleset: Ruleset) -> Result<(), Error> {
        self.route().await?;
        self.reach(&ruleset.service_ranges.iter().copied().collect::<Vec<_>>()).await?;
        nft(APPLY, &script::replace(&ruleset, &self.ports, self.lease)).await?;
        // Not by the same call, which would print what it read instead of what the kernel made of it.
        let table = nft(APPLY_TERSE, &script::list()).await?;
        self.installed = Some(Installed { ruleset, table });
        Ok(())
    }

    /// Renews the lease, and looks whether somebody has changed anything.
    ///
    /// # Errors
    /// [`Error`], when that cannot be told.
    pub async fn renew(&mut self) -> Result<Health, Error> {
        let Some(installed) = self.installed.as_ref().filter(|_| !self.replaced) else { return Ok(Health::Good) };
        self.route().await?;
        match nft(APPLY_TERSE, &(script::renew(self.lease) + &script::list())).await {
            Ok(table) if table == installed.table => Ok(Health::Good),
            Ok(table) if leads_elsewhere(&table, &self.ports) => {
                self.replaced = true;
                Ok(Health::Replaced)
            }
            Ok(_) | Err(Error::Gone(_)) => Ok(Health::Broken),
            Err(error) => Err(error),
        }
    }

    /// Installs again what was in force.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn repair(&mut self) -> Result<(), Error> {
        match &self.installed {
            Some(installed) => self.install(installed.ruleset.clone()).await,
            None => Ok(()),
        }
    }

    /// Removes rules and routes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn remove(&mut self) -> Result<(), Error> {
        // An agent that has taken over needs them.
        if self.replaced || self.renew().await? == Health::Replaced {
            return Ok(());
        }
        self.installed = None;
        nft(APPLY, &script::remove()).await?;
        let (table, priority) = ROUTES;
        for family in self.families() {
            let script =
                format!("rule del pref {priority}\nroute flush table {table}\nroute flush table main proto {ORIGIN}\n");
            ip(family, &script, &["No such file or directory", "FIB table does not exist"]).await?;
        }
        Ok(())
    }

    /// What is marked as caught is delivered on this host, whatever its destination is.
    async fn route(&self) -> Result<(), Error> {
        let (table, priority) = ROUTES;
        for family in self.families() {
            let script = format!(
                "route replace local default dev lo table {table}\n\
                 rule add fwmark {CAUGHT:#x}/{MASK:#x} lookup {table} pref {priority}\n"
            );
            ip(family, &script, &["File exists"]).await?;
        }
        Ok(())
    }

    /// Makes ClusterIPs addresses that this host has a route to, where it has none: without one, processes on the node
    /// cannot even try, as the kernel looks for a route before it looks at rules. The route leads nowhere; caught packets
    /// do not take it.
    async fn reach(&self, ranges: &[IpNet]) -> Result<(), Error> {
        for range in ranges {
            let family = if range.addr().is_ipv4() { "-4" } else { "-6" };
            if !self.families().any(|known| known == family) {
                continue;
            }
            let address = range.hosts().next().unwrap_or_else(|| range.addr()).to_string();
            let found = run("ip", "iproute2", &[family, "route", "get", &address], "").await?;
            if !found.status.success() {
                ip(family, &format!("route add {range} dev lo proto {ORIGIN}\n"), &["File exists"]).await?;
            }
        }
        Ok(())
    }

    fn families(&self) -> impl Iterator<Item = &'static str> + use<> {
        let ipv6 = self.ports.ipv6.map(|_| "-6");
        ["-4"].into_iter().chain(ipv6)
    }
}

/// Whether the rules of `table` lead to the listeners of another process.
fn leads_elsewhere(table: &str, ports: &Ports) -> bool {
    table.contains("tproxy ") && !table.contains(&format!("127.0.0.1:{} ", ports.ipv4.tcp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::script::Pair;

    #[test]
    fn rules_of_another_agent_are_told_from_broken_ones() {
        let pair = |tcp| Pair { tcp, udp: 1 };
        let ports = Ports { ipv4: pair(42_301), ipv6: None };
        let check = |chains, expected| assert_eq!(leads_elsewhere(chains, &ports), expected, "{chains}");
        check("chain deliver { meta l4proto tcp tproxy ip to 127.0.0.1:42301 accept }", false);
        check("chain deliver { meta l4proto tcp tproxy ip to 127.0.0.1:4230 accept }", true);
        check("chain deliver { meta l4proto tcp tproxy ip to 127.0.0.1:142301 accept }", true);
        check("chain deliver { }", false);
    }
}
