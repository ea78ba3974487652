//! What is switched on in the programs that a packet goes through.

use datapath_common::{Config, Feature};

/// First port for translated sources, and their number: the agent's defaults.
const SNAT_PORTS: (u16, u16) = (10_000, 20_000);

/// A set of switches. The verifier removes the code of what is off, so each set
/// is a set of programs of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// The overlay and services of pods.
    Plain,
    /// The same, and clients outside, the node's own, masquerade.
    Serving,
    /// The same, and traffic is counted for each service and backend: the
    /// agent's default.
    Counting,
}

impl Setup {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Serving, Self::Counting];

    /// `plain` with the switches of this setup.
    #[must_use]
    pub fn config(self, plain: &Config) -> Config {
        let more = match self {
            Self::Plain => 0,
            Self::Serving => Feature::UPLINK_SERVICES | Feature::MASQUERADE,
            Self::Counting => {
                Feature::UPLINK_SERVICES | Feature::MASQUERADE | Feature::COUNT_SERVICES
            }
        };
        let (snat_first, snat_ports) = SNAT_PORTS;
        Config {
            features: plain.features | more,
            snat_first,
            snat_ports,
            ..*plain
        }
    }
}
