//! Columns and fields of traffic, for services and backends.

use serde::{Deserialize, Serialize};

use crate::format;
use crate::output::{Column, right};

/// Traffic since the maps were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Flows opened.
    pub flows: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Their bytes from the Ethernet header on.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

impl From<datapath_common::Traffic> for Traffic {
    fn from(row: datapath_common::Traffic) -> Self {
        Self {
            flows: row.flows,
            packets: row.packets,
            bytes: row.bytes,
            reply_packets: row.reply_packets,
            reply_bytes: row.reply_bytes,
        }
    }
}

/// Columns of [`cells`].
pub const COLUMNS: [Column; 5] = [
    right("FLOWS"),
    right("PACKETS"),
    right("BYTES"),
    right("REPLIES"),
    right("REPLY BYTES"),
];

/// Cells of a table; dashes for what is not counted.
pub fn cells(traffic: Option<&Traffic>) -> [String; 5] {
    traffic.map_or_else(
        || std::array::from_fn(|_| "-".to_owned()),
        |t| {
            [
                format::count(t.flows),
                format::count(t.packets),
                format::bytes(t.bytes),
                format::count(t.reply_packets),
                format::bytes(t.reply_bytes),
            ]
        },
    )
}
