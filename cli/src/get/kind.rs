//! The kinds of things a gateway can be asked for, their names and their columns.

use runtime::args::nearest::nearest;

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Services.
    Services,
    /// The endpoints of each Service.
    Endpoints,
    /// Nodes.
    Nodes,
    /// Agents that are, or were, connected.
    Agents,
    /// The verdicts that external load balancers get, one per node.
    Health,
}

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// Whether it is shown only by `-o wide`.
    pub wide: bool,
}

const KINDS: [(Kind, &[&str]); 5] = [
    (Kind::Services, &["services", "service", "svc"]),
    (Kind::Endpoints, &["endpoints", "endpoint", "ep"]),
    (Kind::Nodes, &["nodes", "node", "no"]),
    (Kind::Agents, &["agents", "agent"]),
    (Kind::Health, &["health"]),
];

const SERVICES: &[Column] = &[
    column("NAME"),
    column("TYPE"),
    column("CLUSTER-IP"),
    column("EXTERNAL-IP"),
    column("PORT(S)"),
    column("AGE"),
    wide("PROTOCOL"),
    wide("EXTERNAL-POLICY"),
    wide("INTERNAL-POLICY"),
    wide("AFFINITY"),
    wide("BALANCING"),
];

const ENDPOINTS: &[Column] =
    &[column("NAME"), column("ENDPOINTS"), column("AGE"), wide("NOT-READY"), wide("TERMINATING"), wide("NODES")];

const NODES: &[Column] = &[
    column("NAME"),
    column("STATUS"),
    column("AGENT"),
    column("ZONE"),
    column("INTERNAL-IP"),
    column("AGE"),
    wide("EXTERNAL-IP"),
    wide("REGION"),
    wide("POD-CIDR"),
];

const AGENTS: &[Column] = &[
    column("NAME"),
    column("STATE"),
    column("CONNECTED"),
    column("BEHIND"),
    column("RESOURCES"),
    column("REJECTED"),
    column("LISTENERS"),
    column("FAULTS"),
    column("VERSION"),
    column("AGE"),
    wide("RESYNC"),
    wide("PEER"),
    wide("INSTANCE"),
];

const HEALTH: &[Column] = &[
    column("NAME"),
    column("STATE"),
    column("REASON"),
    column("WEIGHT"),
    column("ZONE"),
    column("SINCE"),
    wide("EXPIRES"),
    wide("ADDRESSES"),
    wide("MESSAGE"),
];

const fn column(name: &'static str) -> Column {
    Column { name, wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, wide: true }
}

impl Kind {
    /// The kind of this name or short name; case does not count.
    ///
    /// # Errors
    /// The rest of a sentence whose subject is the name, with the choices.
    pub fn parse(raw: &str) -> Result<Kind, String> {
        let known = KINDS.iter().find(|(_, names)| names.iter().any(|name| name.eq_ignore_ascii_case(raw)));
        if let Some((kind, _)) = known {
            return Ok(*kind);
        }
        let choices = "is not one of services (svc), endpoints (ep), nodes (no), agents, health";
        let names: Vec<&str> =
            KINDS.iter().flat_map(|(_, names)| names.iter().copied()).filter(|name| name.len() > 3).collect();
        Err(match nearest(raw, &names) {
            Some(near) => format!("{choices}; did you mean {near}?"),
            None => choices.into(),
        })
    }

    /// The plural, as in messages.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Services => "services",
            Kind::Endpoints => "endpoints",
            Kind::Nodes => "nodes",
            Kind::Agents => "agents",
            Kind::Health => "health",
        }
    }

    /// Whether things of this kind are in namespaces.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Services | Kind::Endpoints)
    }

    /// The columns, those of `-o wide` at the end.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Kind::Services => SERVICES,
            Kind::Endpoints => ENDPOINTS,
            Kind::Nodes => NODES,
            Kind::Agents => AGENTS,
            Kind::Health => HEALTH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_names_of_kubectl() {
        for (kind, names) in KINDS {
            assert!(names.iter().all(|name| Kind::parse(name) == Ok(kind)));
            assert_eq!(Kind::parse(kind.plural()), Ok(kind));
            assert_eq!(kind.columns()[0].name, "NAME");
        }
        assert_eq!(Kind::parse("SVC"), Ok(Kind::Services));
        let choices = "is not one of services (svc), endpoints (ep), nodes (no), agents, health";
        assert_eq!(Kind::parse("pods"), Err(choices.to_string()));
        assert_eq!(Kind::parse("servces"), Err(format!("{choices}; did you mean services?")));
    }
}
