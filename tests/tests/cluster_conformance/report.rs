//! What was seen beside what was expected, as a table.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use futures::{StreamExt as _, stream};
use tests::{probe::Seen, sandbox::plan::Role};

use crate::{
    lab::Lab,
    matrix::{ENTRY, OTHER, Probe},
    rules::{self, Expected, Outcome, Proxy, Source},
};

/// Questions under way at a time.
const AT_A_TIME: usize = 64;
/// How long nothing has to come until it is silence.
const SILENCE: Duration = Duration::from_millis(500);
/// How long an answer may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(5);

/// A question, what has to come of it by a rule, and what came.
#[derive(Clone, Debug)]
pub struct Row {
    pub question: String,
    pub rule: &'static str,
    pub expected: String,
    pub seen: String,
    pub agrees: bool,
}

/// Asks everything, as far as possible at once.
pub async fn observe(lab: &Lab, probes: &[Probe<'_>], proxy: Proxy) -> Vec<Row> {
    let rows = probes.iter().enumerate().map(|(number, probe)| async move {
        let expected = rules::expected(probe, lab.address(probe.client, probe.family), proxy);
        let patience = if expected.any_of.contains(&Outcome::Silence) { SILENCE } else { ANSWER };
        let seen = outcome(lab, probe, lab.ask(probe, patience).await);
        (number, Row::new(probe.to_string(), &expected, &seen))
    });
    let mut rows: Vec<_> = stream::iter(rows).buffer_unordered(AT_A_TIME).collect().await;
    rows.sort_by_key(|(number, _)| *number);
    rows.into_iter().map(|(_, row)| row).collect()
}

// === impl Row ===

impl Row {
    fn new(question: String, expected: &Expected, seen: &Outcome) -> Self {
        let agrees = expected.any_of.contains(seen);
        let any_of: Vec<String> = expected.any_of.iter().map(Outcome::to_string).collect();
        Self { question, rule: expected.rule, expected: any_of.join(" or "), seen: seen.to_string(), agrees }
    }
}

/// What was seen, in the words of the rules.
fn outcome(lab: &Lab, probe: &Probe<'_>, seen: Seen) -> Outcome {
    let (pod, source) = match seen {
        Seen::Refused => return Outcome::Refused,
        Seen::Silence => return Outcome::Silence,
        Seen::Other(what) => return Outcome::Other(what),
        Seen::Answer { pod, source, .. } => (pod, source),
    };
    let node = Role::Node(probe.client.enters_by(probe.destination));
    let whose = if node.addresses().contains(&source) {
        Some(Source::Node)
    } else {
        (source == lab.address(probe.client, probe.family)).then_some(Source::Client)
    };
    let echo = [ENTRY, OTHER].into_iter().find(|node| pod == format!("echo-{node}"));
    match (echo, whose) {
        (Some(node), Some(whose)) => Outcome::Answer(node, whose),
        _ => Outcome::Other(format!("{pod} sees {source}")),
    }
}

/// How many questions each rule was asked, and how many answers were as it says.
pub fn by_rule(rows: &[Row]) -> String {
    let mut rules: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for row in rows {
        let (asked, agreed) = rules.entry(row.rule).or_default();
        *asked += 1;
        *agreed += usize::from(row.agrees);
    }
    let mut text = format!("{:<28} {:>6} {:>6}\n", "rule", "asked", "agreed");
    for (rule, (asked, agreed)) in rules {
        let _ = writeln!(text, "{rule:<28} {asked:>6} {agreed:>6}");
    }
    text
}

/// Each question on which kube-proxy, Portico or both are not as the rules say.
pub fn differences(kube: &[Row], portico: &[Row]) -> Vec<String> {
    assert_eq!(kube.len(), portico.len(), "both were asked the same");
    let pairs = kube.iter().zip(portico).filter(|(kube, portico)| !kube.agrees || !portico.agrees);
    let line = |(kube, portico): (&Row, &Row)| {
        let Row { question, rule, expected, seen, .. } = portico;
        format!("{question:<62} | kube-proxy: {:<20} | Portico: {seen:<20} | {rule}: {expected}", kube.seen)
    };
    pairs.map(line).collect()
}

/// Each question on which one proxy is not as the rules say.
pub fn deviations(rows: &[Row]) -> Vec<String> {
    let wrong = rows.iter().filter(|row| !row.agrees);
    let line = |row: &Row| {
        let Row { question, rule, expected, seen, .. } = row;
        format!("{question:<62} | {seen:<20} | {rule}: {expected}")
    };
    wrong.map(line).collect()
}
