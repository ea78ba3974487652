//! Arguments of the servers for probes and metrics.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use clap::ArgAction;
use clap::builder::BoolishValueParser;

/// Where others ask how the agent does.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Health and metrics")]
pub struct HttpArgs {
    /// Where load balancers and probes ask: /healthz, /livez, /readyz; `off` for nowhere. An
    /// address of all zeros is both families'
    #[arg(long, value_name = "ADDRESS:PORT", env = "TULLE_HEALTH_ADDRESS")]
    #[arg(default_value_t = ListenAt::At(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 10_256)))]
    pub health_address: ListenAt,
    /// Where Prometheus asks: /metrics, and /configz, /proxyMode, /healthz; `off` for nowhere. What
    /// is below /debug is told to this node itself only, wherever that is
    #[arg(long, value_name = "ADDRESS:PORT", env = "TULLE_METRICS_ADDRESS")]
    #[arg(default_value_t = ListenAt::At(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_249)))]
    pub metrics_address: ListenAt,
    /// Tell the traffic of each service port, by name: a dozen series for each
    #[arg(
        long,
        value_name = "BOOL",
        env = "TULLE_SERVICE_METRICS",
        default_value_t = false
    )]
    #[arg(action = ArgAction::Set)]
    pub service_metrics: bool,
    /// Do not start where one of these addresses is taken; otherwise it is tried again
    #[arg(
        long,
        value_name = "BOOL",
        env = "TULLE_BIND_ADDRESS_HARD_FAIL",
        default_value_t = false
    )]
    #[arg(action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_parser = BoolishValueParser::new())]
    pub bind_address_hard_fail: bool,
}

/// Value of `--health-address` and `--metrics-address`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenAt {
    /// Nowhere.
    Off,
    /// At this address.
    At(SocketAddr),
}

impl ListenAt {
    /// The address, if there is one.
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "off" => Ok(Self::Off),
            text => match text.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => Ok(Self::At(address)),
                _ => Err(
                    "neither `off` nor an address with a port, such as 0.0.0.0:10256 or \
                          [::1]:10249"
                        .to_owned(),
                ),
            },
        }
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port() {
        for good in ["off", "0.0.0.0:10256", "[::]:10256", "[fe80::1%3]:1"] {
            assert_eq!(good.parse::<ListenAt>().unwrap().to_string(), good);
        }
        for bad in ["", "0.0.0.0", "127.0.0.1:0", ":10256", "on", "::1:10249"] {
            assert!(bad.parse::<ListenAt>().is_err(), "{bad}");
        }
        assert_eq!(ListenAt::Off.address(), None);
    }
}
