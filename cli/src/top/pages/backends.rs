//! The page of backends: all of them, or those of one service.

use std::cmp::Ordering;

use crate::top::grid::Column;
use crate::top::list::Item;
use crate::top::page::Sort;
use crate::top::pages::services::{compare_rates, rate_cells};
use crate::top::sample::BackendId;
use crate::top::text::{Piece, Tone, piece, plain, total, width};
use crate::top::view::BackendRow;

/// The longest address with its port: `[8 groups]:65535`.
const LONGEST: usize = 47;
/// The shortest column of addresses.
const SHORTEST: usize = 15;

/// Columns of the page: no address is cut as long as its rates fit beside it in 80 columns.
pub fn columns(rows: &[BackendRow], of_one_service: bool) -> Vec<Column> {
    let longest = rows.iter().map(|row| width(&row.address.to_string())).max();
    let address = longest.unwrap_or(0).clamp(SHORTEST, LONGEST);
    let mut columns = vec![
        Column::words("ADDRESS", Some(Sort::Name), (address, address), 0),
        Column::words("PROTO", None, (5, 5), 8),
        Column::words("STATE", Some(Sort::State), (8, 8), 4),
        Column::numbers("FLOWS/S", Sort::Flows, 0, 1),
        Column::numbers("PKT/S", Sort::Packets, 0, 2),
        Column::numbers("BIT/S", Sort::Bits, 0, 3),
        Column::numbers("RE PKT/S", Sort::ReplyPackets, 0, 9),
        Column::numbers("RE BIT/S", Sort::ReplyBits, 0, 6),
        Column::numbers("FLOWS", Sort::Total, 0, 7),
        Column::words("SERVICES", Some(Sort::Service), (18, 120), 5),
    ];
    if of_one_service {
        columns.pop();
    }
    columns
}

impl Item for BackendRow {
    type Id = BackendId;

    fn id(&self) -> BackendId {
        self.key()
    }

    fn matches(&self, part: &str) -> bool {
        self.address.to_string().contains(part)
            || self.state == part
            || self.protocol.to_lowercase() == part
            || self
                .services
                .iter()
                .any(|s| s.to_lowercase().contains(part))
    }

    fn compare(&self, other: &Self, by: Sort) -> Ordering {
        let flows = |row: &Self| row.traffic.map(|traffic| traffic.flows);
        let key = |row: &Self| (row.address, row.id, row.generation);
        match by {
            Sort::Service => self.services.cmp(&other.services),
            Sort::State => self.state.cmp(&other.state),
            Sort::Total => flows(other).cmp(&flows(self)),
            _ => compare_rates(self.rates, other.rates, by)
                .unwrap_or_else(|| key(self).cmp(&key(other))),
        }
    }

    fn cells(&self, _: &[Column], _: &[usize]) -> Vec<Piece> {
        let [flows, packets, bits, reply_packets, reply_bits] = rate_cells(self.rates);
        let state = match self.state.as_str() {
            "active" => Tone::Good,
            _ => Tone::Warn,
        };
        let services = if self.services.is_empty() {
            "-".into()
        } else {
            self.services.join(" ")
        };
        let all = self.traffic.map_or_else(|| "-".into(), |t| total(t.flows));
        vec![
            plain(self.address.to_string()),
            plain(&self.protocol),
            piece(state, &self.state),
            flows,
            packets,
            bits,
            reply_packets,
            reply_bits,
            plain(all),
            plain(services),
        ]
    }
}
