//! Where an agent answers otherwise than CoreDNS, and why it does. Each difference turns what CoreDNS says into what is
//! expected of the agent, so that one answer may differ in several ways and is still compared whole.

use hickory_proto::rr::RecordType;

use crate::{
    ask::{Question, Said},
    questions::is_named,
};

/// A way in which answers differ.
pub struct Difference {
    /// What is different and why, with the rule.
    pub why: &'static str,
    /// Makes of CoreDNS's answer what is expected. Ours is looked at for what nobody can know before, such as how old an
    /// answer is, and for what another question of the same test proves.
    pub apply: fn(&Question, &mut Said, &Said),
}

/// All that are meant, in the order in which they are applied. Each of them occurs.
pub const ALL: &[Difference] = &[
    Difference {
        why: "CoreDNS was given the reverse trees as its own; ours begins at our addresses (S19.2)",
        apply: reverse_tree,
    },
    Difference {
        why: "a name that has a PTR record exists for other types too (S19.7, RFC 2308)",
        apply: reverse_exists,
    },
    Difference { why: "of an address in a range of Pods nobody else knows a name (S19.2)", apply: reverse_range },
    Difference { why: "names above others exist, for every type (S19.7, RFC 8020)", apply: between },
    Difference { why: "a name that does not exist does not exist for SOA either (S19.7)", apply: no_authority },
    Difference { why: "ANY is answered with one record that says no to it (RFC 8482)", apply: any },
    Difference { why: "labels of ports and protocols have underscores (S19.3)", apply: underscores },
    Difference {
        why: "endpoints of Services with ClusterIPs have names only by their host names (S19.4, S19.5), and only where \
              Portico serves the Service: agents do not know the endpoints of others",
        apply: not_headless,
    },
    Difference { why: "ports without a name have no SRV record (S19.3)", apply: unnamed_ports },
    Difference { why: "Pods have addresses and no ports (S19.10)", apply: pods },
    Difference { why: "an alias is one for every type (S19.6, RFC 1034 section 3.6.2)", apply: alias },
    Difference {
        why: "an alias to a name that does not exist is shown, and ends as that name (RFC 6604)",
        apply: dangling_alias,
    },
    Difference {
        why: "aliases that go in a circle are an error, and no name without addresses (S19.6)",
        apply: circle,
    },
    Difference { why: "each server names its own addresses as those of the zone's server", apply: name_server },
    Difference { why: "of weights only their relation counts, and all are equal (S19.3, RFC 2782)", apply: weights },
    Difference { why: "the spelling of the question is repeated in its own name only (S19.8)", apply: spelling },
];

const DOMAIN: &str = "cluster.local.";
const AUTHORITY: &str = "SOA ns.dns.cluster.local. hostmaster.cluster.local. 7200 1800 86400 5";
/// What the server for other names says of those that it does not know.
const ELSEWHERE: &str = ". 60 SOA ns.example.test. hostmaster.example.test. 7200 1800 86400 60";

/// Names that CoreDNS does not take for existing names with some types.
const BETWEEN: [&str; 13] = [
    "",
    "dns-version.",
    "svc.",
    "pod.",
    "dns.",
    "ns.dns.",
    "shop.svc.",
    "empty.svc.",
    "shop.pod.",
    "_tcp.web.shop.svc.",
    "_udp.web.shop.svc.",
    "_tcp.db.shop.svc.",
    "_udp.db.shop.svc.",
];

/// ExternalName Services that lead to a name, with the name.
const ALIASES: [(&str, &str); 6] = [
    ("site", "www.example.test."),
    ("site-lost", "nobody.example.test."),
    ("near", "web.shop.svc.cluster.local."),
    ("nearer", "near.shop.svc.cluster.local."),
    ("near-db", "db.shop.svc.cluster.local."),
    ("near-nobody", "nobody.shop.svc.cluster.local."),
];

/// The part of the name below the cluster domain.
fn below(question: &Question) -> Option<&str> {
    question.name.strip_suffix(DOMAIN)
}

fn is_reverse(question: &Question) -> bool {
    question.name.ends_with(".arpa.")
}

fn nothing(code: &str, owner: &str) -> Said {
    Said {
        code: code.to_owned(),
        authoritative: true,
        truncated: false,
        answers: vec![],
        authorities: vec![format!("{owner} 5 {AUTHORITY}")],
        additionals: vec![],
    }
}

fn elsewhere() -> Said {
    Said { authoritative: false, authorities: vec![ELSEWHERE.to_owned()], ..nothing("NXDomain", DOMAIN) }
}

fn reverse_tree(question: &Question, said: &mut Said, _: &Said) {
    if is_reverse(question) && (question.kind == RecordType::SOA || question.name == "in-addr.arpa.") {
        *said = elsewhere();
    }
}

/// The authority is the name itself, or the tree of the range that its address is in.
fn reverse_exists(question: &Question, said: &mut Said, ours: &Said) {
    if is_reverse(question) && question.kind != RecordType::PTR && is_named(&question.name) {
        let owner = ours.authorities.first().and_then(|line| line.split(' ').next());
        let owner = owner.filter(|owner| question.name.ends_with(owner));
        *said = nothing("NoError", owner.unwrap_or(&question.name));
    }
}

fn reverse_range(question: &Question, said: &mut Said, _: &Said) {
    if question.name == "200.0.244.10.in-addr.arpa." {
        *said = nothing("NXDomain", "0.244.10.in-addr.arpa.");
    }
}

fn between(question: &Question, said: &mut Said, _: &Said) {
    let exists = below(question).is_some_and(|name| BETWEEN.iter().any(|known| known.eq_ignore_ascii_case(name)));
    if exists && said.code == "NXDomain" {
        said.code = "NoError".to_owned();
    }
}

/// That the name does not exist is what both say when they are asked for its address.
fn no_authority(question: &Question, said: &mut Said, ours: &Said) {
    if question.kind == RecordType::SOA && below(question).is_some() && *ours == nothing("NXDomain", DOMAIN) {
        said.code = ours.code.clone();
    }
}

fn any(question: &Question, said: &mut Said, _: &Said) {
    let of_cluster = question.name.to_ascii_lowercase().ends_with(DOMAIN);
    if question.kind == RecordType::ANY && of_cluster && said.code == "NoError" && said.answers.is_empty() {
        said.answers = vec![format!("{} 5 HINFO RFC8482 ", question.name)];
        said.authorities.clear();
    }
}

fn underscores(question: &Question, said: &mut Said, _: &Said) {
    if below(question) == Some("http.tcp.web.shop.svc.") {
        *said = nothing("NXDomain", DOMAIN);
    }
}

fn not_headless(question: &Question, said: &mut Said, _: &Said) {
    if matches!(below(question), Some("10-250-6-2.hosted.shop.svc." | "front.theirs.shop.svc.")) {
        *said = nothing("NXDomain", DOMAIN);
    }
    if question.kind == RecordType::PTR && is_reverse(question) {
        let had = !said.answers.is_empty();
        let of_these = ["10-250-6-2.hosted.shop", "front.theirs.shop", ".web.shop"];
        // Of `web` those of its endpoints, which have a dot before the Service; it has a name itself.
        let is = |line: &str| of_these.iter().any(|name| line.ends_with(&format!("{name}.svc.{DOMAIN}")));
        said.answers.retain(|line| !is(line));
        if had && said.answers.is_empty() {
            *said = elsewhere();
        }
    }
}

fn unnamed_ports(question: &Question, said: &mut Said, _: &Said) {
    let is = matches!(below(question), Some("plain.shop.svc." | "unnamed.shop.svc." | "a.unnamed.shop.svc."));
    if is && question.kind == RecordType::SRV {
        *said = nothing("NoError", DOMAIN);
    }
}

fn pods(question: &Question, said: &mut Said, _: &Said) {
    let is = below(question).is_some_and(|name| name.ends_with(".pod."));
    if is && question.kind == RecordType::SRV && !said.answers.is_empty() {
        *said = nothing("NoError", DOMAIN);
    }
}

/// The alias that a question is about: the whole record.
fn alias_of(question: &Question) -> Option<String> {
    let service = below(question)?.strip_suffix(".shop.svc.")?;
    let (_, target) = ALIASES.iter().find(|(name, _)| *name == service)?;
    Some(format!("{} 5 CNAME {target}", question.name))
}

/// What follows the alias is what the target says, which is asked too.
fn alias(question: &Question, said: &mut Said, ours: &Said) {
    let Some(alias) = alias_of(question) else { return };
    let usual = matches!(question.kind, RecordType::A | RecordType::AAAA | RecordType::CNAME | RecordType::ANY);
    if !usual && ours.answers.contains(&alias) {
        *said = ours.clone();
    }
}

fn dangling_alias(question: &Question, said: &mut Said, _: &Said) {
    let Some(alias) = alias_of(question) else { return };
    let is = |kind: RecordType| matches!(kind, RecordType::A | RecordType::AAAA);
    let authority = match below(question) {
        Some("near-nobody.shop.svc.") if is(question.kind) => format!("{DOMAIN} 5 {AUTHORITY}"),
        Some("site-lost.shop.svc.") if is(question.kind) => ELSEWHERE.to_owned(),
        _ => return,
    };
    *said = Said { answers: vec![alias], authorities: vec![authority], ..nothing("NXDomain", DOMAIN) };
}

fn circle(question: &Question, said: &mut Said, _: &Said) {
    let usual = matches!(question.kind, RecordType::CNAME | RecordType::ANY);
    if below(question) == Some("circle.shop.svc.") && !usual {
        *said = Said { authorities: vec![], ..nothing("ServFail", DOMAIN) };
    }
}

fn name_server(question: &Question, said: &mut Said, _: &Said) {
    let ours = [format!("ns.dns.{DOMAIN} 5 A 169.254.20.53")];
    match (below(question), question.kind) {
        (Some(""), RecordType::NS) => said.additionals = ours.to_vec(),
        (Some("ns.dns."), RecordType::A) => said.answers = ours.to_vec(),
        (Some("ns.dns."), RecordType::AAAA) => *said = nothing("NoError", DOMAIN),
        _ => {}
    }
}

fn weights(_: &Question, said: &mut Said, _: &Said) {
    for line in &mut said.answers {
        let mut words: Vec<&str> = line.split(' ').collect();
        if let [_, _, "SRV", _, weight, _, _] = &mut words[..] {
            *weight = "100";
            *line = words.join(" ");
        }
    }
    said.answers.sort();
}

fn spelling(question: &Question, said: &mut Said, _: &Said) {
    let domain = question.name.len().checked_sub(DOMAIN.len()).and_then(|at| question.name.get(at..));
    let Some(domain) = domain.filter(|domain| *domain != DOMAIN && domain.eq_ignore_ascii_case(DOMAIN)) else { return };
    for line in said.authorities.iter_mut().chain(&mut said.additionals) {
        *line = line.replace(domain, DOMAIN);
    }
    for line in &mut said.answers {
        if let Some((owner, rest)) = line.split_once(' ') {
            *line = format!("{owner} {}", rest.replace(domain, DOMAIN));
        }
    }
}

/// What others answered is kept by agents, and grows old as it may (RFC 1035, section 3.2.1); names in it that are written
/// as references to the question are spelled as whoever asks spells it. Both depend on who asked before, so that this need
/// not occur.
pub fn keep(said: &mut Said, ours: &Said) {
    for (theirs, ours) in [(&mut said.answers, &ours.answers), (&mut said.authorities, &ours.authorities)] {
        for line in theirs.iter_mut().filter(|line| line.to_ascii_lowercase().contains("example.test.")) {
            if let Some(kept) = ours.iter().find(|kept| is_kept(line, kept)) {
                line.clone_from(kept);
            }
        }
        theirs.sort();
    }
}

/// Whether `kept` is the record of `line`, with some of its lifetime gone. The second word is the lifetime.
fn is_kept(line: &str, kept: &str) -> bool {
    let (line, kept): (Vec<&str>, Vec<&str>) = (line.split(' ').collect(), kept.split(' ').collect());
    let seconds = |words: &[&str]| words.get(1).and_then(|word| word.parse::<u32>().ok());
    let same = |at: usize| at == 1 || line[at].eq_ignore_ascii_case(kept[at]);
    line.len() == kept.len() && (0..line.len()).all(same) && seconds(&kept) <= seconds(&line)
}
