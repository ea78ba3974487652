//! "Service", step 4: tables behind a segment.

use datapath_common::{FlowState, FrontendFlags, Reason, proto};

use super::fixture::{BPORT, LOCAL_ID, OUTSIDE_ID};
use super::{Case, Fixture};
use crate::model::{FlowRow, Verdict};
use crate::packet::{Spec, Upper, tcp_flag};

/// Two backends, of which the table behind them names one.
pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let ids = [LOCAL_ID, OUTSIDE_ID];
    for (named, to) in [(LOCAL_ID, f.pod), (OUTSIDE_ID, f.outside)] {
        for (how, flags) in [
            ("", 0),
            (", by the client's address", FrontendFlags::SOURCE_HASH),
        ] {
            for (what, flag) in [("new flow", tcp_flag::SYN), ("data", tcp_flag::ACK)] {
                let spec = f.from_client(Upper::Tcp(flag), f.local_service, 80);
                let out = Spec {
                    dst: to,
                    dport: BPORT,
                    ..spec.clone()
                };
                let name = format!("{what}: the table names backend {named} alone{how}");
                let mut case = f.case(&name, &spec);
                case = if named == LOCAL_ID {
                    let (verdict, out) = Fixture::delivered(&out, 3);
                    case.leaves(Reason::DeliveredLocal, verdict, out)
                } else {
                    case.leaves(Reason::TranslatedToKernel, Verdict::Kernel, out.build())
                };
                if flag == tcp_flag::SYN {
                    let rows = f.rows(proto::TCP, f.local_service, named, FlowState::Opening, 0);
                    let service = 100 + LOCAL_ID;
                    case = case.writes(rows.map(|(id, row)| (id, FlowRow { service, ..row })));
                }
                let start = case.world.segments.len() as u32;
                case.world.segments.extend(ids.iter().chain(&[named; 5]));
                // Whoever goes on behind the table finds another.
                case.world
                    .segments
                    .extend([LOCAL_ID + OUTSIDE_ID - named; 5]);
                let front = case
                    .world
                    .frontends
                    .get_mut(&(f.local_service, 80, proto::TCP));
                if let Some(row) = front {
                    (row.start, row.len, row.table) = (start, 2, 5);
                    (row.out_start, row.out_len, row.out_table) = (start, 2, 5);
                    row.flags |= flags;
                }
                cases.push(case);
            }
        }
    }
    cases
}
