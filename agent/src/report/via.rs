//! How an endpoint was reached.

use std::fmt;

/// How a connection came to its endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// It was dialled from this node.
    #[default]
    Direct,
    /// Through the agent of its node, as the client.
    Hop,
    /// Through that agent it could not be; it was dialled from an address of this node.
    Bypassed(Bypass),
}

/// Why a connection whose client was to be kept was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// Nobody answers at the hop port of the node.
    NoAgent,
    /// Its agent gave no answer, so it did not believe the header, or is no agent at all.
    Refused,
    /// Its agent does not know the endpoint.
    Unknown,
}

// === impl Bypass ===

impl Bypass {
    /// Every one of them.
    pub const ALL: [Bypass; 3] = [Bypass::NoAgent, Bypass::Refused, Bypass::Unknown];

    /// `portico.hop.bypass` of spans and log lines, `reason` of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Bypass::NoAgent => "no_agent",
            Bypass::Refused => "refused",
            Bypass::Unknown => "unknown_endpoint",
        }
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Bypass::NoAgent => "no agent answers at its hop port",
            Bypass::Refused => "its agent refused the hop, see its log",
            Bypass::Unknown => "its agent does not know the endpoint",
        })
    }
}
