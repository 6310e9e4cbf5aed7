//! Names of every kind that there are below the cluster domain and beside it, each asked for with types that fit and with
//! types that do not.

use std::net::IpAddr;

use hickory_proto::rr::{Name, RecordType};

use crate::ask::Question;

/// What each name is asked for.
const KINDS: [RecordType; 11] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::TXT,
    RecordType::CNAME,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::NS,
    RecordType::MX,
    RecordType::HTTPS,
    RecordType::ANY,
];

/// Below `cluster.local`.
const CLUSTER: &[&str] = &[
    // The domain, and names between it and Services.
    "",
    "dns-version.",
    "x.dns-version.",
    "svc.",
    "pod.",
    "dns.",
    "ns.dns.",
    "nobody.",
    "shop.svc.",
    "empty.svc.",
    "nowhere.svc.",
    "shop.pod.",
    "nowhere.pod.",
    // With ClusterIPs.
    "kubernetes.default.svc.",
    "_https._tcp.kubernetes.default.svc.",
    "web.shop.svc.",
    "_http._tcp.web.shop.svc.",
    "_ask._udp.web.shop.svc.",
    "_ask._tcp.web.shop.svc.",
    "_http._udp.web.shop.svc.",
    "_nothing._tcp.web.shop.svc.",
    "http.tcp.web.shop.svc.",
    "_tcp.web.shop.svc.",
    "_udp.web.shop.svc.",
    "_sctp.web.shop.svc.",
    "tcp.web.shop.svc.",
    "x.web.shop.svc.",
    "a.b.c.d.web.shop.svc.",
    "ours.shop.svc.",
    "_http._tcp.ours.shop.svc.",
    "six.shop.svc.",
    "_http._tcp.six.shop.svc.",
    "plain.shop.svc.",
    "_tcp.plain.shop.svc.",
    "signal.shop.svc.",
    "_sig._sctp.signal.shop.svc.",
    "web.nowhere.svc.",
    "nobody.shop.svc.",
    "web.empty.svc.",
    // With ClusterIPs, and endpoints that have host names.
    "hosted.shop.svc.",
    "front.hosted.shop.svc.",
    "10-250-6-2.hosted.shop.svc.",
    "back.hosted.shop.svc.",
    "front.theirs.shop.svc.",
    // Headless.
    "db.shop.svc.",
    "db-0.db.shop.svc.",
    "db-1.db.shop.svc.",
    "10-250-1-1.db.shop.svc.",
    "10-250-1-4.db.shop.svc.",
    "fd25--1-4.db.shop.svc.",
    "fd25-1--0.db.shop.svc.",
    "late.db.shop.svc.",
    "leaving.db.shop.svc.",
    "unknown.db.shop.svc.",
    "_sql._tcp.db.shop.svc.",
    "_stats._tcp.db.shop.svc.",
    "_ask._udp.db.shop.svc.",
    "_nothing._tcp.db.shop.svc.",
    "_sql._udp.db.shop.svc.",
    "_tcp.db.shop.svc.",
    "_udp.db.shop.svc.",
    "_sql._tcp.db-0.db.shop.svc.",
    "_tcp.db-0.db.shop.svc.",
    "x.db-0.db.shop.svc.",
    "portless.shop.svc.",
    "a.portless.shop.svc.",
    "10-250-2-2.portless.shop.svc.",
    "_tcp.portless.shop.svc.",
    "unnamed.shop.svc.",
    "a.unnamed.shop.svc.",
    "_tcp.unnamed.shop.svc.",
    "gone.shop.svc.",
    "_http._tcp.gone.shop.svc.",
    "mirror.shop.svc.",
    "image.mirror.shop.svc.",
    // Pods that are not ready.
    "early.shop.svc.",
    "early-0.early.shop.svc.",
    "_http._tcp.early.shop.svc.",
    "patient.shop.svc.",
    "early-0.patient.shop.svc.",
    // Aliases.
    "site.shop.svc.",
    "x.site.shop.svc.",
    "_http._tcp.site-lost.shop.svc.",
    "site-lost.shop.svc.",
    "near.shop.svc.",
    "nearer.shop.svc.",
    "near-db.shop.svc.",
    "near-nobody.shop.svc.",
    "circle.shop.svc.",
    "number.shop.svc.",
    // Pods that there are none of.
    "10-9-9-9.shop.pod.",
    "fd99--9.shop.pod.",
    "nonsense.shop.pod.",
    "x.10-9-9-9.shop.pod.",
    // What a Pod's search list makes of names of the world.
    "www.example.test.shop.svc.",
    "www.example.test.svc.",
    "www.example.test.",
];

/// Asked as they are.
const OTHERS: &[&str] = &[
    "WEB.Shop.sVc.Cluster.LOCAL.",
    "_HTTP._Tcp.web.shop.svc.cluster.LOCAL.",
    "DB-0.db.shop.svc.cluster.local.",
    "Dns-Version.cluster.local.",
    "www.example.test.",
    "WWW.example.TEST.",
    "nobody.example.test.",
    "local.",
    "in-addr.arpa.",
    "96.10.in-addr.arpa.",
    "7.96.10.in-addr.arpa.",
    "1.1.7.96.10.in-addr.arpa.",
];

/// Addresses of Services and endpoints, which have names.
const NAMED: &[&str] = &[
    "10.96.0.1",
    "10.96.7.1",
    "fd96::701",
    "10.96.7.2",
    "fd96::703",
    "10.250.6.1",
    "10.250.1.1",
    "10.250.1.2",
    "10.250.1.4",
    "10.250.2.1",
    "fd25::1:1",
    "fd25::1:4",
];

/// Addresses that have none: of endpoints that are not ready or not named, of nobody, of others.
const NAMELESS: &[&str] = &[
    "10.250.1.5",
    "10.250.1.6",
    "10.250.6.2",
    "10.250.7.1",
    "10.96.99.99",
    "10.244.99.99",
    "10.244.0.200",
    "fd96::99",
    "192.0.2.1",
    "2001:db8::1",
];

/// All questions about what the objects of the cluster are, and about the Pod that is ready and has these addresses.
pub fn all(pod: &[IpAddr]) -> Vec<Question> {
    let mut names: Vec<String> = CLUSTER.iter().map(|name| format!("{name}cluster.local.")).collect();
    names.extend(OTHERS.iter().map(|name| (*name).to_owned()));
    names.extend(NAMED.iter().chain(NAMELESS).map(|address| arpa(address.parse().expect("an address"))));
    for address in pod {
        names.push(arpa(*address));
        let dashed = address.to_string().replace(['.', ':'], "-");
        names.extend(["shop", "default"].map(|namespace| format!("{dashed}.{namespace}.pod.cluster.local.")));
    }
    let questions = |name: String| KINDS.map(|kind| Question { name: name.clone(), kind });
    names.into_iter().flat_map(questions).collect()
}

fn arpa(address: IpAddr) -> String {
    Name::from(address).to_ascii()
}

/// Whether this is the reverse name of an address that the objects of the cluster have names for.
pub fn is_named(name: &str) -> bool {
    let address = Name::from_ascii(name).ok().and_then(|name| name.parse_arpa_name().ok());
    let whole = address.filter(|address| address.prefix_len() == address.max_prefix_len());
    whole.is_some_and(|address| !NAMELESS.contains(&address.addr().to_string().as_str()))
}
