//! What becomes of a flow: its states, and when it has expired.

use core::hint::black_box;

use datapath_common::{Direction, Flow, FlowState, IdleTicks, NodeClient, proto};

use crate::{Headers, Signal};

/// The state that a packet leads to. Total over state, direction and signal.
#[inline(always)]
pub(crate) fn step(state: FlowState, direction: Direction, signal: Signal) -> FlowState {
    match (state, direction, signal) {
        // Either end closes or resets. What follows (the last ACKs) changes nothing.
        (FlowState::Closing, _, _) | (_, _, Signal::Close) => FlowState::Closing,
        // An answer of any kind: also of a connection that is older than its rows.
        (FlowState::Established, _, _) | (FlowState::Opening, Direction::Reply, _) => {
            FlowState::Established
        }
        // The client repeats its SYN or sends the next datagram: no answer yet.
        (FlowState::Opening, Direction::Forward, _) => FlowState::Opening,
    }
}

/// Ticks after which a flow without packets has expired.
#[inline(always)]
pub fn idle_limit(idle: &IdleTicks, p: u8, state: FlowState) -> u32 {
    let (opening, established, closing) = match p {
        proto::TCP => (idle.tcp_opening, idle.tcp_established, idle.tcp_closing),
        proto::SCTP => (idle.sctp_opening, idle.sctp_established, idle.sctp_closing),
        _ => (idle.udp_opening, idle.udp_established, idle.udp_established),
    };
    // Opaque: the compiler would compute an address from `state`, whose range
    // the verifier (Linux 6.18 and before) has lost by then.
    match state {
        FlowState::Opening => black_box(opening),
        FlowState::Established => black_box(established),
        FlowState::Closing => black_box(closing),
    }
}

/// The state of a row that has not expired.
#[inline(always)]
pub fn live_state<A>(idle: &IdleTicks, flow: &Flow<A>, p: u8, now: u32) -> Option<FlowState> {
    unexpired(idle, flow.state, flow.seen, p, now)
}

#[inline(always)]
fn unexpired(idle: &IdleTicks, state: u8, seen: u32, p: u8, now: u32) -> Option<FlowState> {
    let state = FlowState::from_u8(state)?;
    // `seen` may be ahead of `now` by a tick, written by another CPU.
    let age = now.wrapping_sub(seen).cast_signed();
    if age < SEEN_LAG.cast_signed() || age <= idle_limit(idle, p, state).cast_signed() {
        Some(state)
    } else {
        None
    }
}

/// Ticks that `seen` may lag behind, so that a busy flow's row is seldom written.
pub(crate) const SEEN_LAG: u32 = 2;

/// Whether a row must be written: its state changes to `next`, or `seen` is old.
#[inline(always)]
pub(crate) fn is_stale(state: u8, seen: u32, next: FlowState, now: u32) -> bool {
    state != next as u8 || now.wrapping_sub(seen) >= SEEN_LAG
}

/// Ticks of silence after which a closing connection makes room for a new one: 30 s
/// at the least, for `seen` may lag by two ticks.
const QUIET_TICKS: u32 = 30;

/// Whether a row in this state has been silent for that long.
#[inline(always)]
pub(crate) fn is_quiet(state: FlowState, seen: u32, now: u32) -> bool {
    let silent = now.wrapping_sub(seen).cast_signed();
    state == FlowState::Closing && silent >= QUIET_TICKS.cast_signed()
}

/// What a packet makes of the flow whose row it met, in a register: 0 if the row has expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress(pub u32);

impl Progress {
    /// Below them: the [`FlowState`] that the packet leads to.
    const STALE: u32 = 1 << 8;
    const QUIET: u32 = 1 << 9;

    /// `met`: as [`met`] says. `seen`: what the row says.
    #[inline(always)]
    pub fn of(idle: &IdleTicks, met: u32, seen: u32, now: u32) -> Self {
        let (row, p, signal) = (met as u8, (met >> PROTO) as u8, (met >> SIGNAL) as u8);
        let direction = if met & REPLY == 0 {
            Direction::Forward
        } else {
            Direction::Reply
        };
        let Some(state) = unexpired(idle, row, seen, p, now) else {
            return Self(0);
        };
        let next = step(state, direction, Signal::from_u8(signal));
        let mut bits = next as u32;
        if is_stale(row, seen, next, now) {
            bits |= Self::STALE;
        }
        if is_quiet(state, seen, now) {
            bits |= Self::QUIET;
        }
        Self(bits)
    }

    /// The state that the packet leads to; `None` if the row has expired.
    #[inline(always)]
    pub(crate) fn next(self) -> Option<FlowState> {
        FlowState::from_u8(self.0 as u8)
    }

    /// Whether the row must be written.
    #[inline(always)]
    pub(crate) fn is_stale(self) -> bool {
        self.0 & Self::STALE != 0
    }

    /// Whether the flow was closing, and silent for long.
    #[inline(always)]
    pub(crate) fn was_quiet(self) -> bool {
        self.0 & Self::QUIET != 0
    }
}

// How a packet meets a row, in a register: the row's state, and these.

const PROTO: u32 = 8;
const SIGNAL: u32 = 16;
const REPLY: u32 = 1 << 24;

/// A packet with these headers meets the row of this direction. What a client goes on with
/// whose answers do not come by here says that there was one.
#[inline(always)]
pub(crate) fn met<A>(row: &Flow<A>, h: &Headers<A>, direction: Direction) -> u32 {
    let facts = row.state as u32 | (h.proto as u32) << PROTO | (h.signal as u32) << SIGNAL;
    match direction {
        Direction::Forward => {
            // Without a branch: a verifier would follow both sides to the program's end.
            let goes_on = is_direct(row) as u32 * (h.signal == Signal::Data) as u32;
            facts | (goes_on * REPLY)
        }
        Direction::Reply => facts | REPLY,
    }
}

/// Whether a forward row is of a client that the backend's node answers.
#[inline(always)]
pub(crate) const fn is_direct<A>(row: &Flow<A>) -> bool {
    row.node == NodeClient::Direct as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [FlowState; 3] = [
        FlowState::Opening,
        FlowState::Established,
        FlowState::Closing,
    ];
    const SIGNALS: [Signal; 4] = [Signal::Data, Signal::Open, Signal::Accept, Signal::Close];

    #[test]
    fn a_close_is_final_and_states_never_go_back() {
        for direction in [Direction::Forward, Direction::Reply] {
            for state in STATES {
                for signal in SIGNALS {
                    let next = step(state, direction, signal);
                    assert!(next >= state, "{state:?} {direction:?} {signal:?}");
                    assert_eq!(
                        next == FlowState::Closing,
                        state == FlowState::Closing || signal == Signal::Close
                    );
                }
            }
        }
    }

    #[test]
    fn only_an_answer_establishes() {
        for signal in [Signal::Data, Signal::Open, Signal::Accept] {
            let forward = step(FlowState::Opening, Direction::Forward, signal);
            assert_eq!(forward, FlowState::Opening);
            let reply = step(FlowState::Opening, Direction::Reply, signal);
            assert_eq!(reply, FlowState::Established);
        }
    }
}
