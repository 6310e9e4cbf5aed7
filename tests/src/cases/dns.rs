//! DNS: objects and a question in, records out. Everything between them is what runs in a cluster: the gateway's model,
//! its resources, the agent's table, and the answer from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use agent::{
    apply::{
        compile::{Compiler, Here, NodePortAddresses},
        resources::Resources,
    },
    dns::answer::{Answer, Answered, Known, PodNames, answer},
    table::{Table, certificate::TlsContext},
};
use api::{
    delta::{Changed, Changes, version::Version},
    resource::{Resource, settings::Settings},
};
use gateway::{
    model::{
        derive::Derive,
        endpoint::Reach,
        service::Policy,
        world::{Config, Dirty, Ownership, World},
    },
    snapshot::store::Change,
    watch::{
        manifest::parse::parse,
        object::{Event, Kind},
    },
};
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Document, Suite, Test};
use crate::resolver::{PodDns, Resolver};

/// The folder `dns`.
pub const SUITE: Suite = Suite { name: "dns", tests };

/// The reverse zones that CoreDNS is given in the tests that cases are taken from. Here they are ranges of Services.
const REVERSE_ZONES: [&str; 7] = [
    "10.0.0.0/16",
    "10.3.0.0/16",
    "172.0.0.0/24",
    "192.168.0.0/16",
    "1234:abcd::/32",
    "fd00:77:30::/48",
    "2001:db8::/32",
];

#[derive(Deserialize)]
struct Fixture {
    zone: String,
    objects: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    fixture: String,
    #[serde(default)]
    pod_mode: Option<PodMode>,
    #[serde(default = "yes")]
    synced: bool,
    #[serde(default)]
    queries: Vec<Asked>,
    #[serde(default)]
    pod: Option<PodDns>,
    #[serde(default)]
    expect: Option<Resolver>,
    #[serde(default)]
    lookups: Vec<Lookup>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PodMode {
    Disabled,
    Verified,
}

#[derive(Deserialize)]
struct Asked {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    rcode: String,
    #[serde(default)]
    answers: Vec<Expected>,
    #[serde(default)]
    soa: bool,
    #[serde(default)]
    additional: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Expected {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    target_suffix: Option<String>,
    #[serde(default)]
    target_resolves_to: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lookup {
    given: String,
    #[serde(default)]
    answered_as: Option<String>,
}

fn yes() -> bool {
    true
}

fn tests(documents: Vec<Document>) -> Result<Vec<Test>, String> {
    let (fixtures, cases): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| document.value.get("objects").is_some());
    let fixtures: BTreeMap<String, Arc<Fixture>> = fixtures
        .iter()
        .map(|document| Ok((document.name.clone(), Arc::new(document.typed()?))))
        .collect::<Result<_, String>>()?;
    let test = |document: Document| {
        let case: Case = document.typed()?;
        let fixture = fixtures.get(&case.fixture).cloned();
        let fixture = fixture.ok_or_else(|| format!("{}: there is no fixture {}", document.name, case.fixture))?;
        if case.queries.is_empty() && case.pod.is_none() {
            return Err(format!("{}: asks nothing", document.name));
        }
        Ok(Test { name: document.name, run: Box::new(move || run(&case, &fixture)) })
    };
    cases.into_iter().map(test).collect()
}

fn run(case: &Case, fixture: &Fixture) -> Result<(), String> {
    let table = if case.synced { table(fixture)? } else { Table::default() };
    let pods = match case.pod_mode {
        Some(PodMode::Verified) => PodNames::Verified,
        Some(PodMode::Disabled) | None => PodNames::Disabled,
    };
    let server = Server { table, pods };
    let mut wrong: Vec<String> = case.queries.iter().filter_map(|asked| server.check(asked).err()).collect();
    if let Some(pod) = &case.pod {
        let resolver = pod.resolver();
        if let Some(expected) = case.expect.as_ref().filter(|expected| **expected != resolver) {
            wrong.push(format!("the Pod resolves by {resolver:?}, expected {expected:?}"));
        }
        for lookup in &case.lookups {
            let found = resolver.lookup(&lookup.given, |name| server.exists(name));
            if found != lookup.answered_as {
                wrong.push(format!("{} is answered as {found:?}, expected {:?}", lookup.given, lookup.answered_as));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The agent's table for the objects of a fixture.
fn table(fixture: &Fixture) -> Result<Table, String> {
    let network = |text: &str| text.parse().map_err(|_| format!("{text} is no network"));
    let mut world = World::new(Config {
        settings: Settings {
            cluster_domain: fixture.zone.clone(),
            service_cidrs: REVERSE_ZONES.into_iter().map(network).collect::<Result<_, String>>()?,
            node_ports: (1, 2),
        },
        ownership: Ownership::AllButForeign,
        reach: Reach::Cluster,
        policy: Policy::default(),
    });
    let mut dirty = Dirty::default();
    Kind::ALL.into_iter().for_each(|kind| world.apply(Event::Reset(kind, vec![]), &mut dirty));
    for object in &fixture.objects {
        let parsed = parse(object.to_string().as_bytes()).map_err(|error| error.to_string())?;
        parsed.objects.into_iter().for_each(|(_, object)| world.apply(Event::Apply(object.trimmed()), &mut dirty));
    }
    let synced = world.synced().ok_or("the objects are not listed")?;
    let changed = |change| match change {
        Change::Set(resource) => Some(changed(&resource)),
        Change::Remove(_) => None,
    };
    let set = Derive::default().derive(synced, &dirty).changes.into_iter().filter_map(changed).collect();
    let mut resources = Resources::default();
    let (rejections, dirty) = resources.apply(Changes { set, removed: vec![] });
    if let Some(rejection) = rejections.first() {
        return Err(format!("{}: {}", rejection.key, rejection.message));
    }
    let here = Here { node: "node".to_owned(), node_port_addresses: NodePortAddresses::All, http_port: None };
    let tls = TlsContext::new().map_err(|error| error.to_string())?;
    Ok(Compiler::new(here, tls).compile(&resources, &dirty))
}

fn changed(resource: &Resource) -> Changed {
    let body = resource.encode();
    Changed { key: resource.key(), version: Version::of(&body), body: body.into() }
}

/// What answers the questions of a case.
struct Server {
    table: Table,
    pods: PodNames,
}

// === impl Server ===

impl Server {
    /// Asks as a client would who has no other server: what leads elsewhere ends there.
    fn ask(&self, name: &Name, kind: RecordType) -> Answer {
        let failed = |code| Answer { code, ..Answer::default() };
        // The server says so before the first commit, unless others give a better answer.
        let Some(zone) = &self.table.zone else { return failed(ResponseCode::ServFail) };
        let known = Known {
            zone,
            workloads: &self.table.workloads,
            pods: self.pods,
            servers: &[IpAddr::from([169, 254, 20, 53])],
        };
        match answer(&Query::query(name.clone(), kind), &known, &mut fastrand::Rng::with_seed(7)) {
            Answered::Here(answer) => answer,
            Answered::Elsewhere(answers, _) => Answer { answers, ..Answer::default() },
            Answered::NotOurs => failed(ResponseCode::NXDomain),
        }
    }

    fn exists(&self, name: &str) -> bool {
        let name = Name::from_ascii(name).expect("a name of a case");
        [RecordType::A, RecordType::AAAA].into_iter().any(|kind| !self.ask(&name, kind).answers.is_empty())
    }

    fn check(&self, asked: &Asked) -> Result<(), String> {
        let failed = |what: String| Err(format!("{} {}: {what}", asked.name, asked.kind));
        let name = Name::from_ascii(&asked.name).map_err(|error| format!("{}: {error}", asked.name))?;
        let kind = asked.kind.parse().map_err(|_| format!("{} is no type", asked.kind))?;
        let answer = self.ask(&name, kind);
        let code = match answer.code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::Refused => "REFUSED",
            _ => "another code",
        };
        if code != asked.rcode {
            return failed(format!("{code}, expected {}", asked.rcode));
        }
        if asked.soa && !answer.authorities.iter().any(|record| record.record_type() == RecordType::SOA) {
            return failed("no SOA in the authority section".to_owned());
        }
        let mut unexpected: Vec<&Record> = answer.answers.iter().collect();
        for expected in &asked.answers {
            match unexpected.iter().position(|record| self.is(record, expected, &asked.name)) {
                Some(at) => drop(unexpected.remove(at)),
                None => return failed(format!("no record as {expected:?} in {:?}", texts(&answer.answers))),
            }
        }
        if !unexpected.is_empty() {
            return failed(format!("not expected: {:?}", texts(unexpected)));
        }
        let targets: BTreeSet<String> = answer.answers.iter().filter_map(|record| target(&record.data)).collect();
        let allowed = |record: &&Record| {
            targets.contains(&record.name.to_ascii())
                || asked.additional.iter().any(|expected| self.is(record, expected, &asked.name))
        };
        match answer.additionals.iter().find(|record| !allowed(record)) {
            Some(record) => failed(format!("not allowed in the additional section: {record}")),
            None => Ok(()),
        }
    }

    fn is(&self, record: &Record, expected: &Expected, asked: &str) -> bool {
        // The spelling of the question is repeated, so owners are compared with case.
        let owner = record.name.to_ascii() == *expected.owner.as_deref().unwrap_or(asked);
        let kind = record.record_type().to_string() == expected.kind;
        let same =
            |expected: &Option<String>, found: String| expected.as_ref().is_none_or(|expected| *expected == found);
        let content = match &record.data {
            RData::SRV(srv) => {
                let target = srv.target.to_ascii();
                same(&expected.target, target.clone())
                    && expected.port.is_none_or(|port| port == srv.port)
                    && expected.target_suffix.as_ref().is_none_or(|suffix| target.ends_with(suffix.as_str()))
                    && expected.target_resolves_to.is_none_or(|address| self.resolves(&srv.target, address))
            }
            RData::TXT(txt) => {
                let text = txt.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect();
                same(&expected.data, text)
            }
            data => same(&expected.data, target(data).unwrap_or_else(|| data.to_string())),
        };
        owner && kind && content
    }

    fn resolves(&self, name: &Name, address: IpAddr) -> bool {
        let kind = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        self.ask(name, kind).answers.iter().any(|record| record.data.ip_addr() == Some(address))
    }
}

/// The name that a record leads to.
fn target(data: &RData) -> Option<String> {
    match data {
        RData::SRV(srv) => Some(srv.target.to_ascii()),
        RData::CNAME(name) => Some(name.0.to_ascii()),
        RData::PTR(name) => Some(name.0.to_ascii()),
        RData::NS(name) => Some(name.0.to_ascii()),
        _ => None,
    }
}

fn texts<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<String> {
    records.into_iter().map(ToString::to_string).collect()
}
