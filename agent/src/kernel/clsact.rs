//! Classifiers as `cls_bpf` filters on a clsact qdisc, for kernels without TCX
//! (before 6.6). A filter stays when the agent ends, and a new program takes
//! its place in one step.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};

use super::rtnl::Rtnl;

/// Which side of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

/// Priority of our filters: fixed, so that the next agent finds them.
pub(crate) const PRIORITY: u16 = 50;
/// Handle of our filters.
pub(crate) const HANDLE: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// A filter on a clsact qdisc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Filter {
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// The name that it was given, if it is a BPF filter.
    pub name: Option<String>,
    /// Its program, if it is a BPF filter.
    pub program: Option<u32>,
}

impl Filter {
    /// Whether it stands where ours do.
    pub(crate) fn in_our_place(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE
    }
}

fn parent(side: Side) -> TcHandle {
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle {
        major: TcHandle::CLSACT.major,
        minor,
    }
}

fn signed(ifindex: u32) -> i32 {
    ifindex.cast_signed()
}

fn filter_message(ifindex: u32, side: Side) -> TcMessage {
    let mut message = TcMessage::with_index(signed(ifindex));
    message.header.parent = parent(side);
    message.header.handle = TcHandle::from(HANDLE);
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    message.attributes.push(TcAttribute::Kind("bpf".into()));
    message
}

fn qdisc_message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(signed(ifindex));
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    message
}

/// Whether the device has a clsact qdisc.
pub(crate) fn has_qdisc(rtnl: &mut Rtnl, ifindex: u32) -> io::Result<bool> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(signed(ifindex)));
    let answers = rtnl.ask(request, NLM_F_DUMP)?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(m) => {
            m.header.index == signed(ifindex)
                && m.attributes.contains(&TcAttribute::Kind("clsact".into()))
        }
        _ => false,
    }))
}

/// Adds a clsact qdisc.
pub(crate) fn add_qdisc(rtnl: &mut Rtnl, ifindex: u32) -> io::Result<()> {
    let request = RouteNetlinkMessage::NewQueueDiscipline(qdisc_message(ifindex));
    rtnl.ask(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        .map(drop)
}

/// Removes the clsact qdisc with all its filters. Says whether it was there.
pub(crate) fn remove_qdisc(rtnl: &mut Rtnl, ifindex: u32) -> io::Result<bool> {
    let request = RouteNetlinkMessage::DelQueueDiscipline(qdisc_message(ifindex));
    gone(rtnl.ask(request, NLM_F_ACK))
}

/// Puts the program into our place, or in the place of its forerunner.
pub(crate) fn put_filter(
    rtnl: &mut Rtnl,
    ifindex: u32,
    side: Side,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let mut message = filter_message(ifindex, side);
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(name.into()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes.push(TcAttribute::Options(
        options.into_iter().map(TcOption::Bpf).collect(),
    ));
    rtnl.ask(
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_ACK | NLM_F_CREATE,
    )
    .map(drop)
}

/// Removes the filter in our place. Says whether it was there.
pub(crate) fn remove_filter(rtnl: &mut Rtnl, ifindex: u32, side: Side) -> io::Result<bool> {
    let request = RouteNetlinkMessage::DelTrafficFilter(filter_message(ifindex, side));
    gone(rtnl.ask(request, NLM_F_ACK))
}

/// The filters of one side; none if there is no such qdisc or device.
pub(crate) fn filters(rtnl: &mut Rtnl, ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
    let mut message = TcMessage::with_index(signed(ifindex));
    message.header.parent = parent(side);
    let answers = match rtnl.ask(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP) {
        Ok(answers) => answers,
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(m) => Some(read_filter(&m)),
            _ => None,
        })
        // The kernel also lists each priority's own head, with handle 0.
        .filter(|filter| filter.handle != 0)
        .collect())
}

fn read_filter(message: &TcMessage) -> Filter {
    let mut filter = Filter {
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        name: None,
        program: None,
    };
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else {
            continue;
        };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                    filter.name = Some(name.clone());
                }
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                _ => {}
            }
        }
    }
    filter
}

fn is_gone(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
    )
}

fn gone<T>(answer: io::Result<T>) -> io::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}
