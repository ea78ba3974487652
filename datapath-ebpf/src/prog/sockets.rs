//! `tulle_connect4` and its like: what processes below the cgroup do with sockets.

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use datapath_common::{Ip4, Ip6};
use datapath_core::socket::{again, close, connect, peer_name, send, sender_name};

use crate::sockets::{Closed, Ctx, SocketMaps};

/// What the kernel goes on with; nothing is forbidden here.
const GO_ON: i32 = 1;

/// `connect` of IPv4.
#[cgroup_sock_addr(connect4)]
pub fn tulle_connect4(ctx: SockAddrContext) -> i32 {
    connect_v4::<false>(Ctx::from(ctx));
    GO_ON
}

/// `connect` of IPv6, and of IPv4 by an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn tulle_connect6(ctx: SockAddrContext) -> i32 {
    let ctx = Ctx::from(ctx);
    if ctx.is_mapped() {
        connect_v4::<true>(ctx);
    } else {
        connect_v6(ctx);
    }
    GO_ON
}

/// A datagram of IPv4 to an address that goes with it, also by an IPv6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn tulle_sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = Ctx::from(ctx);
    if ctx.is_of(false) && !again_v4(ctx) {
        let mut peer = ctx.peer4(false);
        if send(&SocketMaps, &ctx.sender4(), &mut peer) {
            ctx.set_peer4(false, &peer);
        }
    }
    GO_ON
}

/// A datagram of IPv6 to an address that goes with it.
#[cgroup_sock_addr(sendmsg6)]
pub fn tulle_sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = Ctx::from(ctx);
    if ctx.is_of(true) && !again_v6(ctx) {
        let mut peer = ctx.peer6();
        if send(&SocketMaps, &ctx.sender6(), &mut peer) {
            ctx.set_peer6(&peer);
        }
    }
    GO_ON
}

/// Whose datagram of IPv4 a process reads.
#[cgroup_sock_addr(recvmsg4)]
pub fn tulle_recvmsg4(ctx: SockAddrContext) -> i32 {
    sender_v4::<false>(Ctx::from(ctx));
    GO_ON
}

/// Whose datagram an IPv6 socket reads.
#[cgroup_sock_addr(recvmsg6)]
pub fn tulle_recvmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = Ctx::from(ctx);
    if ctx.is_mapped() {
        sender_v4::<true>(ctx);
    } else {
        sender_v6(ctx);
    }
    GO_ON
}

/// `getpeername` of IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn tulle_peername4(ctx: SockAddrContext) -> i32 {
    peer_v4::<false>(Ctx::from(ctx));
    GO_ON
}

/// `getpeername` of IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn tulle_peername6(ctx: SockAddrContext) -> i32 {
    let ctx = Ctx::from(ctx);
    if ctx.is_mapped() {
        peer_v4::<true>(ctx);
    } else {
        peer_v6(ctx);
    }
    GO_ON
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn tulle_release(ctx: SockContext) -> i32 {
    let closed = Closed::from(ctx);
    close_v4(closed);
    if closed.is_v6() {
        close_v6(closed);
    }
    GO_ON
}

// Functions of their own: each family has the stack to itself. `MAPPED` is a constant, or the
// compiler would compute where a field is, and the verifier wants that said.

#[inline(never)]
fn connect_v4<const MAPPED: bool>(ctx: Ctx) {
    if !ctx.is_of(MAPPED) {
        return;
    }
    let mut peer = ctx.peer4(MAPPED);
    if connect(&SocketMaps, &ctx.socket(), &mut peer) {
        ctx.set_peer4(MAPPED, &peer);
    }
}

#[inline(never)]
fn connect_v6(ctx: Ctx) {
    if !ctx.is_of(true) {
        return;
    }
    let mut peer = ctx.peer6();
    if connect(&SocketMaps, &ctx.socket(), &mut peer) {
        ctx.set_peer6(&peer);
    }
}

/// Whether a datagram goes to whom the socket is connected to.
#[inline(never)]
fn again_v4(ctx: Ctx) -> bool {
    let connected = ctx.connected4();
    if connected.port == 0 {
        return false;
    }
    let mut peer = ctx.peer4(false);
    let is_again = again(&SocketMaps, &ctx.reader(), &connected, &mut peer);
    if is_again {
        ctx.set_peer4(false, &peer);
    }
    is_again
}

#[inline(never)]
fn again_v6(ctx: Ctx) -> bool {
    let connected = ctx.connected6();
    if connected.port == 0 {
        return false;
    }
    let mut peer = ctx.peer6();
    let is_again = again(&SocketMaps, &ctx.reader(), &connected, &mut peer);
    if is_again {
        ctx.set_peer6(&peer);
    }
    is_again
}

#[inline(never)]
fn peer_v4<const MAPPED: bool>(ctx: Ctx) {
    let mut peer = ctx.peer4(MAPPED);
    if peer_name(&SocketMaps, &ctx.reader(), &mut peer) {
        ctx.set_peer4(MAPPED, &peer);
    }
}

#[inline(never)]
fn peer_v6(ctx: Ctx) {
    let mut peer = ctx.peer6();
    if peer_name(&SocketMaps, &ctx.reader(), &mut peer) {
        ctx.set_peer6(&peer);
    }
}

#[inline(never)]
fn sender_v4<const MAPPED: bool>(ctx: Ctx) {
    let mut from = ctx.peer4(MAPPED);
    if sender_name(&SocketMaps, &ctx.reader(), &ctx.connected4(), &mut from) {
        ctx.set_peer4(MAPPED, &from);
    }
}

#[inline(never)]
fn sender_v6(ctx: Ctx) {
    let mut from = ctx.peer6();
    if sender_name(&SocketMaps, &ctx.reader(), &ctx.connected6(), &mut from) {
        ctx.set_peer6(&from);
    }
}

#[inline(never)]
fn close_v4(closed: Closed) {
    close::<Ip4, _>(&SocketMaps, &closed.socket());
}

#[inline(never)]
fn close_v6(closed: Closed) {
    close::<Ip6, _>(&SocketMaps, &closed.socket());
}
