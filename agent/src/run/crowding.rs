//! How full a flow table is, and what is done about it. The kernel evicts what
//! was idle longest, be it a living connection or a flow that nobody answered:
//! so the latter are forgotten early as a table fills.

use datapath_common::IdleTicks;

/// Ticks after which an unanswered flow of a crowded table is forgotten: its
/// next packet (TCP repeats a SYN after 1, 3 and 7 s) opens it anew.
const EARLY_OPENING: u32 = 5;
/// The same of a flow after FIN, RST, SHUTDOWN or ABORT: for the last packets.
const EARLY_CLOSING: u32 = 30;

/// State of one flow table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Crowding {
    /// Living rows that the last walk saw, if there was one.
    rows: Option<u64>,
    /// Three quarters full, or about to be; until half is free.
    crowded: bool,
    /// Seven eighths full: the kernel may evict rows (each CPU keeps some free
    /// ones for itself). Until a quarter is free.
    evicting: bool,
}

impl Crowding {
    /// After a walk that saw `rows` living rows in a table that holds `limit`.
    #[must_use]
    pub fn after(self, rows: u64, limit: u32) -> Self {
        let limit = u64::from(limit);
        // What came since the last walk comes again before the next.
        let soon = rows + rows.saturating_sub(self.rows.unwrap_or(rows));
        let beyond = |count: u64, eighths: u64| limit > 0 && count * 8 >= limit * eighths;
        Self {
            rows: Some(rows),
            crowded: beyond(soon, 6) || self.crowded && beyond(rows, 4),
            evicting: beyond(rows, 7) || self.evicting && beyond(rows, 6),
        }
    }

    /// Whether unanswered flows are to be forgotten early.
    pub const fn is_crowded(self) -> bool {
        self.crowded
    }

    /// Whether rows of living flows may have been evicted, or soon are.
    pub const fn may_evict(self) -> bool {
        self.evicting
    }

    /// What an operator has to know, of the table `map` for `limit` rows.
    pub fn fault(self, map: &str, limit: u32) -> Option<String> {
        let what = if self.evicting {
            "is full: rows of living flows may be evicted; those whose packets come on are written anew"
        } else if self.crowded {
            "is nearly full"
        } else {
            return None;
        };
        Some(format!(
            "{map} for {limit} rows {what}; unanswered flows are forgotten after \
             {EARLY_OPENING} s, closed ones after {EARLY_CLOSING} s; see `tulle flows --summary`, \
             then raise --max-flows or lower --flows-per-second"
        ))
    }
}

/// Idle times for a crowded table. The programs go on with `idle`: what is
/// forgotten too early comes back with its next packet.
pub fn early(idle: &IdleTicks) -> IdleTicks {
    IdleTicks {
        tcp_opening: idle.tcp_opening.min(EARLY_OPENING),
        udp_opening: idle.udp_opening.min(EARLY_OPENING),
        sctp_opening: idle.sctp_opening.min(EARLY_OPENING),
        tcp_closing: idle.tcp_closing.min(EARLY_CLOSING),
        sctp_closing: idle.sctp_closing.min(EARLY_CLOSING),
        ..*idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(seen: &[u64]) -> Vec<(bool, bool)> {
        let mut table = Crowding::default();
        let after = |rows: &u64| {
            table = table.after(*rows, 800);
            (table.is_crowded(), table.may_evict())
        };
        seen.iter().map(after).collect()
    }

    #[test]
    fn it_begins_late_and_ends_later() {
        let (calm, crowded, full) = ((false, false), (true, false), (true, true));
        assert_eq!(walk(&[100, 250, 399]), [calm, calm, calm]);
        assert_eq!(walk(&[599, 600]), [calm, crowded]);
        assert_eq!(walk(&[200, 400]), [calm, crowded], "400 and 200 more");
        assert_eq!(walk(&[300, 449]), [calm, calm]);
        assert_eq!(walk(&[700]), [full]);
        assert_eq!(
            walk(&[600, 700, 600, 599, 400, 399]),
            [crowded, full, full, crowded, crowded, calm]
        );
    }

    #[test]
    fn only_a_crowded_table_is_told_of() {
        let mut table = Crowding::default();
        assert_eq!(table.fault("m", 800), None);
        table = table.after(700, 800);
        let told = table.fault("tulle_flow_v4", 800).unwrap();
        assert!(
            told.starts_with("tulle_flow_v4 for 800 rows is full: "),
            "{told}"
        );
        table = table.after(500, 800);
        let told = table.fault("tulle_flow_v4", 800).unwrap();
        assert!(told.contains("is nearly full; unanswered"), "{told}");
    }

    #[test]
    fn established_flows_are_never_forgotten_early() {
        let idle = IdleTicks::DEFAULT;
        let soon = early(&idle);
        assert_eq!(soon.tcp_established, idle.tcp_established);
        assert_eq!(soon.udp_established, idle.udp_established);
        assert_eq!(soon.sctp_established, idle.sctp_established);
        assert!(soon.tcp_opening < idle.tcp_opening);
        let short = IdleTicks {
            tcp_opening: 2,
            ..idle
        };
        assert_eq!(early(&short).tcp_opening, 2);
    }
}
