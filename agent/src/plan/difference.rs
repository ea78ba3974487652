//! What may be found when rows are read back, and who reads them.

use std::fmt;

use datapath_common::{Frontend, maps};

use super::applied::Rows;
use super::ops::FrontKey;
use super::outcome::Unit;
use crate::model::Family;

/// A map whose rows the plan alone decides, but for one flag of frontends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "named as their maps are")]
pub enum Table {
    NodesV4,
    DirectV4,
    DirectV6,
    PeersV4,
    PeersV6,
    PodsV4,
    PodsV6,
    BackV4,
    BackV6,
    SrcsV4,
    SrcsV6,
    Segments,
    FrontV4,
    FrontV6,
}

impl Table {
    /// All of them, each after those that its rows name: what is written again of a frontend
    /// finds its backends put right.
    pub const ALL: [Self; 14] = [
        Self::NodesV4,
        Self::DirectV4,
        Self::DirectV6,
        Self::PeersV4,
        Self::PeersV6,
        Self::PodsV4,
        Self::PodsV6,
        Self::BackV4,
        Self::BackV6,
        Self::SrcsV4,
        Self::SrcsV6,
        Self::Segments,
        Self::FrontV4,
        Self::FrontV6,
    ];

    /// The map's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodesV4 => maps::NODES_V4,
            Self::DirectV4 => maps::DIRECT_V4,
            Self::DirectV6 => maps::DIRECT_V6,
            Self::PeersV4 => maps::PEERS_V4,
            Self::PeersV6 => maps::PEERS_V6,
            Self::PodsV4 => maps::PODS_V4,
            Self::PodsV6 => maps::PODS_V6,
            Self::BackV4 => maps::BACK_V4,
            Self::BackV6 => maps::BACK_V6,
            Self::SrcsV4 => maps::SRCS_V4,
            Self::SrcsV6 => maps::SRCS_V6,
            Self::Segments => maps::SEGMENTS,
            Self::FrontV4 => maps::FRONT_V4,
            Self::FrontV6 => maps::FRONT_V6,
        }
    }

    /// Of which family its rows are; those of both stand in one array of slots.
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::Segments => None,
            Self::NodesV4
            | Self::DirectV4
            | Self::PeersV4
            | Self::PodsV4
            | Self::BackV4
            | Self::SrcsV4
            | Self::FrontV4 => Some(Family::V4),
            Self::DirectV6
            | Self::PeersV6
            | Self::PodsV6
            | Self::BackV6
            | Self::SrcsV6
            | Self::FrontV6 => Some(Family::V6),
        }
    }
}

/// How a row is otherwise than it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// It is not there.
    Missing,
    /// It says something else.
    Changed,
    /// It is nobody's.
    Foreign,
}

/// A row that is otherwise than it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its map.
    pub table: Table,
    /// What is written to put it right.
    pub unit: Unit,
    /// How it differs.
    pub how: How,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Missing => "missing",
            How::Changed => "changed",
            How::Foreign => "nobody's",
        };
        write!(f, "{}: {how}", self.unit)
    }
}

/// Where rows are read back. Nobody writes while they are compared: whoever reads is who writes.
pub trait MapReader {
    /// What reading fails with.
    type Error;

    /// Begins at the first row of a table other than [`Table::Segments`].
    fn begin(&mut self, table: Table);

    /// Its next rows, about `room` of them; none at the end. A row that is there from the
    /// beginning to the end is among them, once or more often. Arrays come in the order of
    /// their indices.
    fn next(&mut self, room: u32) -> Result<Option<Rows>, Self::Error>;

    /// The row of one frontend.
    fn frontend(&mut self, key: &FrontKey) -> Result<Option<Frontend>, Self::Error>;

    /// So many slots of `tulle_segments` from `first` on; fewer where it ends.
    fn slots(&mut self, first: u32, count: u32) -> Result<Vec<u32>, Self::Error>;
}
