//! Pages of `tulle top`, and what their rows are sorted by.

use clap::ValueEnum;

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Page {
    /// Agent, packets by program, the largest losses, the fullest maps.
    Overview,
    /// Service ports with their rates.
    Services,
    /// Backends with theirs.
    Backends,
    /// Losses by reason and program, and what to do about them.
    Drops,
    /// How full the maps are, and what they cost.
    Maps,
}

impl Page {
    /// Every page, in the order of the keys 1 to 5.
    pub const ALL: [Self; 5] = [
        Self::Overview,
        Self::Services,
        Self::Backends,
        Self::Drops,
        Self::Maps,
    ];

    /// The page's title.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Services => "Services",
            Self::Backends => "Backends",
            Self::Drops => "Drops",
            Self::Maps => "Maps",
        }
    }

    /// What its rows can be sorted by, in the order of its columns; nothing for a page without rows.
    pub const fn sorts(self) -> &'static [Sort] {
        match self {
            Self::Overview => &[],
            Self::Services => &[
                Sort::Name,
                Sort::Flows,
                Sort::Packets,
                Sort::Bits,
                Sort::ReplyPackets,
                Sort::ReplyBits,
                Sort::Backends,
                Sort::Total,
            ],
            Self::Backends => &[
                Sort::Name,
                Sort::State,
                Sort::Service,
                Sort::Flows,
                Sort::Packets,
                Sort::Bits,
                Sort::ReplyPackets,
                Sort::ReplyBits,
                Sort::Total,
            ],
            Self::Drops => &[Sort::Name, Sort::Hook, Sort::Packets, Sort::Total],
            Self::Maps => &[Sort::Name, Sort::Full, Sort::Total, Sort::Memory],
        }
    }

    /// What its rows are sorted by at first.
    pub const fn first_sort(self) -> Sort {
        match self {
            Self::Overview => Sort::Name,
            Self::Services | Self::Backends => Sort::Bits,
            Self::Drops => Sort::Packets,
            Self::Maps => Sort::Full,
        }
    }

    /// The page after this one, and after the last the first.
    #[must_use]
    pub fn next(self) -> Self {
        self.step(1)
    }

    /// The page before this one.
    #[must_use]
    pub fn previous(self) -> Self {
        self.step(Self::ALL.len() - 1)
    }

    fn step(self, by: usize) -> Self {
        let here = Self::ALL.iter().position(|page| *page == self);
        let at = (here.unwrap_or(0) + by) % Self::ALL.len();
        Self::ALL.get(at).copied().unwrap_or(self)
    }
}

/// What rows are sorted by: names upwards, numbers downwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Sort {
    /// Name; address of a backend, reason of a loss.
    Name,
    /// New flows for each second.
    Flows,
    /// Packets for each second: from clients, or lost.
    Packets,
    /// Bits for each second from clients.
    Bits,
    /// Packets for each second to clients.
    ReplyPackets,
    /// Bits for each second to clients.
    ReplyBits,
    /// Number of backends.
    Backends,
    /// Flows or packets in all; rows in use of a map.
    Total,
    /// State of a backend.
    State,
    /// Services of a backend.
    Service,
    /// Program that counted a loss.
    Hook,
    /// Part of a map that is in use.
    Full,
    /// Memory of a map.
    Memory,
}

impl Sort {
    /// The word for it on the command line.
    pub fn word(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The next one that `page` knows, or the one before; the first if this is none of them.
    #[must_use]
    pub fn step(self, page: Page, forward: bool) -> Self {
        let sorts = page.sorts();
        let by = if forward { 1 } else { sorts.len().max(1) - 1 };
        let at = sorts.iter().position(|sort| *sort == self);
        let at = at.map_or(0, |at| (at + by) % sorts.len());
        sorts.get(at).copied().unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_sorts_go_round() {
        assert_eq!(Page::Overview.next(), Page::Services);
        assert_eq!(Page::Maps.next(), Page::Overview);
        assert_eq!(Page::Overview.previous(), Page::Maps);
        for page in Page::ALL {
            let sorts = page.sorts();
            if let (Some(first), Some(last)) = (sorts.first(), sorts.last()) {
                assert!(sorts.contains(&page.first_sort()), "{page:?}");
                assert_eq!(last.step(page, true), *first);
                assert_eq!(first.step(page, false), *last);
            }
        }
        assert_eq!(Sort::Name.step(Page::Overview, true), Sort::Name);
        assert_eq!(Sort::Memory.step(Page::Services, true), Sort::Name);
        assert_eq!(Sort::ReplyBits.word(), "reply-bits");
    }
}
