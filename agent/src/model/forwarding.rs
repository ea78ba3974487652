//! How clients outside reach a Service's backends on other nodes.

use std::fmt;
use std::str::FromStr;

/// How a packet of a client outside gets to a backend on another node, and the answer back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Forwarding {
    /// Source translation: the backend sees the node that the client asked, and answers it.
    #[default]
    Snat,
    /// Direct server return: the backend sees the client, and its own node answers the client.
    Dsr,
}

const NAMES: [(&str, Forwarding); 2] = [("snat", Forwarding::Snat), ("dsr", Forwarding::Dsr)];

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, forwarding)| forwarding == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for Forwarding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let known = NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, forwarding)| *forwarding).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(" and ");
            format!("{text:?} is no way to forward; there are {names}")
        })
    }
}

/// The families of which a node gives forwarded packets of clients to its pods, and answers these
/// itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DirectReturn {
    /// Whether it does so with IPv4.
    pub v4: bool,
    /// Whether it does so with IPv6.
    pub v6: bool,
}

impl FromStr for DirectReturn {
    type Err = String;

    /// From `IPv4`, `IPv6`, or both with a comma between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut families = Self::default();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match name {
                "IPv4" => families.v4 = true,
                "IPv6" => families.v6 = true,
                other => return Err(format!("{other:?} is neither IPv4 nor IPv6")),
            }
        }
        Ok(families)
    }
}

impl fmt::Display for DirectReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.v4, self.v6) {
            (true, true) => "IPv4,IPv6",
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            (false, false) => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, forwarding) in NAMES {
            assert_eq!(name.parse(), Ok(forwarding));
            assert_eq!(forwarding.to_string(), name);
        }
        let error = "direct".parse::<Forwarding>().unwrap_err();
        assert!(error.ends_with("there are snat and dsr"), "{error}");
    }

    #[test]
    fn families_are_read_as_they_are_written() {
        for text in ["", "IPv4", "IPv6", "IPv4,IPv6"] {
            let families: DirectReturn = text.parse().unwrap();
            assert_eq!(families.to_string(), text);
        }
        assert_eq!(
            " IPv6 , IPv4".parse(),
            Ok(DirectReturn { v4: true, v6: true })
        );
        let error = "ipv4".parse::<DirectReturn>().unwrap_err();
        assert!(error.contains("neither IPv4 nor IPv6"), "{error}");
    }
}
