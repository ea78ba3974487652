//! The ways by which packets of clients outside go to a backend on another node.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use datapath_common::{FrontendFlags, Via};

use super::tables::Tables;
use super::{Bench, PASS, Packet, TRANSMIT};
use crate::bench::scaffold::FRAME;
use crate::cases::uplink::MASQUERADE;
use crate::model::direct::MARK;

/// Flows by which it is seen which rows a way needs, and the number of the first.
const SEEN: u32 = 100;
const FIRST_SEEN: u32 = 3_900_000;
/// What the overlay adds to a packet, and where the octet behind the VNI lies then.
const OVERHEAD: usize = 50;
const MARK_AT: usize = 49;

/// How they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// With a translated source, so that the answers come back to the node that was asked.
    Translated,
    /// As they came: the backend's node answers. Each packet reads its flow's row.
    Direct,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Translated, Self::Direct];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Translated => "source translated",
            Self::Direct => "direct return",
        }
    }

    /// [`FrontendFlags`] of the service.
    pub const fn flags(self) -> u16 {
        MASQUERADE
            | match self {
                Self::Translated => 0,
                Self::Direct => FrontendFlags::DIRECT_RETURN,
            }
    }

    /// Flags of the ways to the backends.
    pub const fn via(self) -> u8 {
        match self {
            Self::Translated => 0,
            Self::Direct => Via::DIRECT,
        }
    }

    /// The rows that there are after data of so many flows that nobody opened.
    const fn rows_after_data(self, flows: u64) -> Rows {
        match self {
            Self::Translated => Rows {
                all: 2 * flows,
                translated: 2 * flows,
                direct: 0,
            },
            Self::Direct => Rows {
                all: flows,
                translated: 0,
                direct: flows,
            },
        }
    }
}

/// Rows of a flow table.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rows {
    /// All.
    pub all: u64,
    /// Those with a translated source.
    pub translated: u64,
    /// Those of flows that another node answers.
    pub direct: u64,
}

impl Bench {
    /// Whether data of the service takes the way that is meant: by what leaves, and by the rows that
    /// data of unknown flows opens. The table must be empty.
    pub fn check_way(&mut self, data: &Packet) -> Result<()> {
        let way = self.tables.way();
        self.under_test.set_flows(&data.rounds, FIRST_SEEN, None)?;
        self.tables.hear_of_next_hops()?;
        let reading = self.under_test.run(&data.rounds.frame, SEEN)?;
        ensure!(
            reading.ret == TRANSMIT || reading.ret == PASS,
            "XDP returned {} for data",
            reading.ret
        );
        let rows = self.tables.rows(data.rounds.v6)?;
        let expected = way.rows_after_data(u64::from(SEEN));
        ensure!(
            rows == expected,
            "{}: after data of {SEEN} flows there are {rows:?}, not {expected:?}",
            way.name()
        );
        // A tick may end, and with it what was heard, so it may take a second time.
        let sent = (0..3).find_map(|_| sent(&mut self.tables, data).transpose());
        let sent = sent.context("no packet was sent")??;
        let mark = sent.get(MARK_AT).copied().context("a short packet")?;
        ensure!(
            (mark == MARK) == (way != Way::Translated),
            "{}: the octet behind the VNI is {mark:#x}",
            way.name()
        );
        Ok(())
    }
}

/// The packet as it leaves, if it is transmitted.
fn sent(tables: &mut Tables, packet: &Packet) -> Result<Option<Vec<u8>>> {
    tables.hear_of_next_hops()?;
    let mut out = vec![0; FRAME + OVERHEAD];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&packet.rounds.frame);
    options.data_out = Some(&mut out);
    let program = <&Xdp>::try_from(tables.xdp()?)?;
    let result = program.test_run(options).context("test run")?;
    Ok((result.return_value.cast_signed() == TRANSMIT).then_some(out))
}
