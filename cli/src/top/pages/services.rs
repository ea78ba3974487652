//! The page of services.

use std::cmp::Ordering;

use crate::top::grid::Column;
use crate::top::list::{Item, downwards};
use crate::top::page::Sort;
use crate::top::text::{Piece, Tone, piece, plain, rate, total};
use crate::top::view::{Rates, ServiceRow};

/// Columns of the page.
pub const COLUMNS: [Column; 11] = [
    Column::words("SERVICE", Some(Sort::Name), (24, 90), 0),
    Column::words("IP", None, (2, 2), 6),
    Column::words("PROTO", None, (5, 5), 9),
    Column::numbers("FLOWS/S", Sort::Flows, 0, 1),
    Column::numbers("PKT/S", Sort::Packets, 0, 2),
    Column::numbers("BIT/S", Sort::Bits, 0, 3),
    Column::numbers("RE PKT/S", Sort::ReplyPackets, 0, 8),
    Column::numbers("RE BIT/S", Sort::ReplyBits, 0, 4),
    Column::numbers("BACKENDS", Sort::Backends, 0, 5),
    Column::numbers("FLOWS", Sort::Total, 0, 7),
    Column::words("FRONTEND", None, (30, 47), 10),
];

/// Cells of rates: flows, packets, bits, packets and bits of replies.
pub fn rate_cells(rates: Option<Rates>) -> [Piece; 5] {
    let cell = |value: fn(&Rates) -> f64| {
        let value = rates.as_ref().map(value);
        // What moves is to be seen among what does not.
        let tone = match value {
            Some(value) if value > 0.0 => Tone::Plain,
            _ => Tone::Dim,
        };
        piece(tone, rate(value))
    };
    [
        cell(|rates| rates.flows),
        cell(|rates| rates.packets),
        cell(|rates| rates.bits),
        cell(|rates| rates.reply_packets),
        cell(|rates| rates.reply_bits),
    ]
}

/// Orders rates by one of them, if `by` is one.
pub fn compare_rates(a: Option<Rates>, b: Option<Rates>, by: Sort) -> Option<Ordering> {
    let value: fn(Rates) -> f64 = match by {
        Sort::Flows => |rates| rates.flows,
        Sort::Packets => |rates| rates.packets,
        Sort::Bits => |rates| rates.bits,
        Sort::ReplyPackets => |rates| rates.reply_packets,
        Sort::ReplyBits => |rates| rates.reply_bits,
        _ => return None,
    };
    Some(downwards(a.map(value), b.map(value)))
}

impl Item for ServiceRow {
    type Id = u32;

    fn id(&self) -> u32 {
        self.number
    }

    fn matches(&self, part: &str) -> bool {
        self.label().to_lowercase().contains(part)
            || self.protocol.to_lowercase() == part
            || self.frontends.iter().any(|f| f.to_string().contains(part))
    }

    fn compare(&self, other: &Self, by: Sort) -> Ordering {
        let flows = |row: &Self| row.traffic.map(|traffic| traffic.flows);
        match by {
            Sort::Backends => other.backends.cmp(&self.backends),
            Sort::Total => flows(other).cmp(&flows(self)),
            _ => compare_rates(self.rates, other.rates, by).unwrap_or_else(|| {
                // Those with a name first.
                let key = |row: &Self| (row.service.is_none(), row.service.clone(), row.number);
                key(self).cmp(&key(other))
            }),
        }
    }

    fn cells(&self, _: &[Column], _: &[usize]) -> Vec<Piece> {
        let [flows, packets, bits, reply_packets, reply_bits] = rate_cells(self.rates);
        let backends = if self.backends == 0 {
            piece(Tone::Warn, "0")
        } else {
            plain(total(self.backends))
        };
        let all = self.traffic.map_or_else(|| "-".into(), |t| total(t.flows));
        let frontend = self.frontends.first();
        // Both families of a service have one name.
        let family = frontend.map_or("", |f| if f.is_ipv4() { "4" } else { "6" });
        vec![
            plain(self.label()),
            plain(family),
            plain(&self.protocol),
            flows,
            packets,
            bits,
            reply_packets,
            reply_bits,
            backends,
            plain(all),
            plain(frontend.map_or_else(String::new, ToString::to_string)),
        ]
    }
}
