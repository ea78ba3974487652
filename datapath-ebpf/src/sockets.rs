//! Sockets and their maps as `datapath_core::socket` asks for them. The programs run for a
//! process, which others may interrupt: nothing is built in maps for each CPU here.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_skc_to_mptcp_sock,
    },
    programs::{SockAddrContext, SockContext},
};
use datapath_common::{
    Address, Affinity, BackendState, Config, Connection, Feature, Frontend, FrontendKey, Ip4, Ip6,
    SocketClient, SocketId, SocketKey, SocketPeer, proto,
};
use datapath_core::socket::{Peer, Socket, Sockets, Target};

use crate::{
    keys::FrontendWords,
    maps,
    once::{tulle_holds, tulle_pick4, tulle_pick6},
    tables::{config, now},
};

/// `AF_INET` and `AF_INET6` of the kernel.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The third word of an IPv4 address that an IPv6 socket uses (RFC 4291 §2.5.5.2).
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// The kernel's context of a program at a socket.
#[derive(Clone, Copy)]
pub struct Ctx(*mut bpf_sock_addr);

/// A field of the context or of the socket behind it, read as the one word that it is.
macro_rules! field {
    ($base:expr, $($field:tt)+) => {
        // SAFETY: the kernel gives the context, and with it the socket, for as long as the
        // program runs; fields are read one by one, as its verifier wants it.
        unsafe { ptr::read_volatile(&raw const (*$base).$($field)+) }
    };
}

/// The same, written.
macro_rules! set {
    ($base:expr, $($field:tt)+) => {
        |word: u32| {
            // SAFETY: as above; these fields may be written.
            unsafe { ptr::write_volatile(&raw mut (*$base).$($field)+, word) }
        }
    };
}

impl From<SockAddrContext> for Ctx {
    #[inline(always)]
    fn from(ctx: SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }
}

impl Ctx {
    /// Whether the address is an IPv4 address that an IPv6 socket uses.
    #[inline(always)]
    pub fn is_mapped(self) -> bool {
        field!(self.0, user_ip6[0]) == 0
            && field!(self.0, user_ip6[1]) == 0
            && field!(self.0, user_ip6[2]) == MAPPED
    }

    /// The port, host order.
    #[inline(always)]
    fn port(self) -> u16 {
        u16::from_be(field!(self.0, user_port) as u16)
    }

    #[inline(always)]
    fn set_port(self, port: u16) {
        set!(self.0, user_port)(port.to_be() as u32);
    }

    /// The socket that is connected.
    #[inline(always)]
    pub fn socket(self) -> Socket {
        let socket = self.socket_from(0);
        if socket.proto == proto::TCP && self.is_mptcps() {
            return Socket { proto: 0, ..socket };
        }
        socket
    }

    /// Whether it is one of the connections of MPTCP: its process has another socket, which
    /// would be told this one's peer.
    #[inline(always)]
    fn is_mptcps(self) -> bool {
        if config().features & Feature::TELLS_MPTCP == 0 {
            return false;
        }
        let sk = field!(self.0, __bindgen_anon_1.sk);
        // SAFETY: the helper takes a socket and returns one, which nobody reads.
        !sk.is_null() && !unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.is_null()
    }

    /// The socket that sends an IPv4 datagram, which may have a source of its own.
    #[inline(always)]
    pub fn sender4(self) -> Socket {
        self.socket_from(field!(self.0, msg_src_ip4))
    }

    /// The same for IPv6.
    #[inline(always)]
    pub fn sender6(self) -> Socket {
        self.socket_from(
            field!(self.0, msg_src_ip6[0])
                | field!(self.0, msg_src_ip6[1])
                | field!(self.0, msg_src_ip6[2])
                | field!(self.0, msg_src_ip6[3]),
        )
    }

    /// The socket; `source` is not 0 if the process names the source.
    #[inline(always)]
    fn socket_from(self, source: u32) -> Socket {
        let raw = self.0;
        // SAFETY: the helpers take the context and return numbers.
        let (cookie, netns) = unsafe {
            (
                bpf_get_socket_cookie(raw.cast()),
                bpf_get_netns_cookie(raw.cast()),
            )
        };
        Socket {
            cookie: words(cookie),
            netns: words(netns),
            proto: self.proto(),
            is_bound: self.is_bound(),
            names_source: source != 0,
        }
    }

    /// The socket, when it only asks whom it has met.
    #[inline(always)]
    pub fn reader(self) -> Socket {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        Socket {
            cookie: words(cookie),
            netns: [0; 2],
            proto: self.proto(),
            is_bound: false,
            names_source: false,
        }
    }

    /// Its protocol; 0 for what has no number of an octet (MPTCP).
    #[inline(always)]
    fn proto(self) -> u8 {
        u8::try_from(field!(self.0, protocol)).unwrap_or(0)
    }

    #[inline(always)]
    fn is_bound(self) -> bool {
        let raw = self.0;
        let family = field!(raw, family);
        let sk = field!(raw, __bindgen_anon_1.sk);
        if sk.is_null() || field!(sk, bound_dev_if) != 0 || field!(sk, mark) != 0 {
            return true;
        }
        let source = if family == AF_INET {
            field!(sk, src_ip4)
        } else {
            // `::ffff:0.0.0.0` is no address either.
            field!(sk, src_ip6[0])
                | field!(sk, src_ip6[1])
                | field!(sk, src_ip6[3])
                | (field!(sk, src_ip6[2]) & !MAPPED)
        };
        source != 0
    }

    /// The IPv4 address that the socket is connected to; without a port if it is not.
    #[inline(always)]
    pub fn connected4(self) -> Peer<Ip4> {
        let sk = field!(self.0, __bindgen_anon_1.sk);
        if sk.is_null() {
            let addr = Ip4::UNSPECIFIED;
            return Peer { addr, port: 0 };
        }
        connected4(sk)
    }

    /// The same of IPv6.
    #[inline(always)]
    pub fn connected6(self) -> Peer<Ip6> {
        let sk = field!(self.0, __bindgen_anon_1.sk);
        if sk.is_null() {
            let addr = Ip6::UNSPECIFIED;
            return Peer { addr, port: 0 };
        }
        connected6(sk)
    }

    /// The IPv4 peer: of a program for IPv4, or mapped.
    #[inline(always)]
    pub fn peer4(self, mapped: bool) -> Peer<Ip4> {
        let word = if mapped {
            field!(self.0, user_ip6[3])
        } else {
            field!(self.0, user_ip4)
        };
        Peer {
            addr: Ip4::new(word.to_ne_bytes()),
            port: self.port(),
        }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set_peer4(self, mapped: bool, peer: &Peer<Ip4>) {
        if mapped {
            set!(self.0, user_ip6[3])(peer.addr.word());
        } else {
            set!(self.0, user_ip4)(peer.addr.word());
        }
        self.set_port(peer.port);
    }

    /// The IPv6 peer.
    #[inline(always)]
    pub fn peer6(self) -> Peer<Ip6> {
        let words = [
            field!(self.0, user_ip6[0]),
            field!(self.0, user_ip6[1]),
            field!(self.0, user_ip6[2]),
            field!(self.0, user_ip6[3]),
        ];
        Peer {
            addr: bytemuck::cast(words),
            port: self.port(),
        }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set_peer6(self, peer: &Peer<Ip6>) {
        let [a, b, c, d] = peer.addr.words();
        set!(self.0, user_ip6[0])(a);
        set!(self.0, user_ip6[1])(b);
        set!(self.0, user_ip6[2])(c);
        set!(self.0, user_ip6[3])(d);
        self.set_port(peer.port);
    }

    /// Whether the address that the process gave is of the program's family.
    #[inline(always)]
    pub fn is_of(self, v6: bool) -> bool {
        field!(self.0, user_family) == if v6 { AF_INET6 } else { AF_INET }
    }
}

/// A socket that is closed.
#[derive(Clone, Copy)]
pub struct Closed(*mut bpf_sock);

impl From<SockContext> for Closed {
    #[inline(always)]
    fn from(ctx: SockContext) -> Self {
        Self(ctx.sock)
    }
}

impl Closed {
    /// The socket.
    #[inline(always)]
    pub fn socket(self) -> Socket {
        // SAFETY: the helper takes the context and returns a number.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        Socket {
            cookie: words(cookie),
            netns: [0; 2],
            proto: u8::try_from(field!(self.0, protocol)).unwrap_or(0),
            is_bound: false,
            names_source: false,
        }
    }

    /// Whether it is an IPv6 socket, which may have used IPv4 too.
    #[inline(always)]
    pub fn is_v6(self) -> bool {
        field!(self.0, family) == AF_INET6
    }
}

/// The IPv4 address that a socket is connected to, also if it is a mapped one.
#[inline(always)]
fn connected4(sk: *mut bpf_sock) -> Peer<Ip4> {
    Peer {
        addr: Ip4::new(field!(sk, dst_ip4).to_ne_bytes()),
        port: u16::from_be(field!(sk, dst_port)),
    }
}

/// The same of IPv6.
#[inline(always)]
fn connected6(sk: *mut bpf_sock) -> Peer<Ip6> {
    let words = [
        field!(sk, dst_ip6[0]),
        field!(sk, dst_ip6[1]),
        field!(sk, dst_ip6[2]),
        field!(sk, dst_ip6[3]),
    ];
    Peer {
        addr: bytemuck::cast(words),
        port: u16::from_be(field!(sk, dst_port)),
    }
}

#[inline(always)]
const fn words(cookie: u64) -> [u32; 2] {
    [cookie as u32, (cookie >> 32) as u32]
}

/// The maps, for one call of a process.
pub struct SocketMaps;

/// A field of a row, read once, and not again after others wrote. In words and less: what is
/// larger would be copied through the stack.
#[inline(always)]
fn read<T: Copy>(field: &T) -> T {
    // SAFETY: rows stay readable until the program ends. One that is written or replaced
    // meanwhile may be half of each: who reads it looks again, or it is a socket's own.
    unsafe { ptr::read_volatile(field) }
}

#[inline(always)]
fn read4(field: &Ip4) -> Ip4 {
    Ip4::new(read(bytemuck::cast_ref::<Ip4, u32>(field)).to_ne_bytes())
}

#[inline(always)]
fn read6(field: &Ip6) -> Ip6 {
    let [a, b, c, d] = bytemuck::cast_ref::<Ip6, [u32; 4]>(field);
    bytemuck::cast([read(a), read(b), read(c), read(d)])
}

macro_rules! sockets {
    ($addr:ty, $read:ident, $front:ident, $back:ident, $conns:ident, $socks:ident, $stats:ident, $pick:ident) => {
        impl Sockets<$addr> for SocketMaps {
            #[inline(always)]
            fn config(&self) -> &Config {
                config()
            }
            #[inline(always)]
            fn now(&self) -> u32 {
                now()
            }
            #[inline(always)]
            fn random(&self) -> u32 {
                // SAFETY: the helper takes nothing.
                unsafe { bpf_get_prandom_u32() }
            }
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$addr>) -> Option<Frontend> {
                let words = FrontendWords::new(key);
                // SAFETY: the agent replaces rows whole and never frees memory under a program.
                let row = unsafe { maps::$front.get(words.key()) }?;
                Some(Frontend {
                    service: read(&row.service),
                    start: read(&row.start),
                    len: read(&row.len),
                    affinity_secs: read(&row.affinity_secs),
                    flags: read(&row.flags),
                    table: read(&row.table),
                    // Nobody asks at a socket what there is for clients outside.
                    ..Frontend::default()
                })
            }
            #[inline(always)]
            fn is_frontend(&self, key: &FrontendKey<$addr>) -> bool {
                let words = FrontendWords::new(key);
                // SAFETY: as above.
                unsafe { maps::$front.get(words.key()) }.is_some()
            }
            #[inline(always)]
            fn slot(&self, index: u32) -> Option<u32> {
                maps::SEGMENTS.get(index).copied()
            }
            #[inline(always)]
            fn holds(&self, start: u32, len: u32, id: u32) -> bool {
                tulle_holds(start, len, id) != 0
            }
            #[inline(always)]
            fn pick(&self, list: u64, how: u64, hash: u32) -> u32 {
                $pick(list, how, hash)
            }
            #[inline(always)]
            fn backend(&self, id: u32) -> Option<Target<$addr>> {
                let row = maps::$back.get(id)?;
                Some(Target {
                    at: Peer {
                        addr: $read(&row.addr),
                        port: read(&row.port),
                    },
                    generation: read(&row.generation),
                    is_active: read(&row.state) == BackendState::Active as u8,
                })
            }
            #[inline(always)]
            fn connection(&self, id: &SocketId) -> Option<Connection<$addr>> {
                // SAFETY: only what this socket does changes its row.
                let row = unsafe { maps::$conns.get(id) }?;
                Some(Connection {
                    backend_addr: $read(&row.backend_addr),
                    service_addr: $read(&row.service_addr),
                    backend_port: read(&row.backend_port),
                    service_port: read(&row.service_port),
                    proto: read(&row.proto),
                    reserved: [0; 3],
                    backend: read(&row.backend),
                    generation: read(&row.generation),
                    seen: read(&row.seen),
                })
            }
            #[inline(always)]
            fn put_connection(&self, id: &SocketId, row: &Connection<$addr>) -> bool {
                maps::$conns.insert(id, row, BPF_ANY as u64).is_ok()
            }
            #[inline(always)]
            fn remove_connection(&self, id: &SocketId) {
                // Gone already: all the better.
                let _ = maps::$conns.remove(id);
            }
            #[inline(always)]
            fn peer(&self, key: &SocketKey<$addr>) -> Option<SocketPeer<$addr>> {
                // SAFETY: rows of a hash map stay readable until the program ends. One that
                // is replaced meanwhile is another of the same socket, which does two things
                // at once then, or the table is full.
                let row = unsafe { maps::$socks.get(key) }?;
                Some(SocketPeer {
                    addr: $read(&row.addr),
                    port: read(&row.port),
                    reserved: 0,
                    backend: read(&row.backend),
                    generation: read(&row.generation),
                    seen: read(&row.seen),
                })
            }
            #[inline(always)]
            fn put_peer(&self, key: &SocketKey<$addr>, peer: &SocketPeer<$addr>) -> bool {
                maps::$socks.insert(key, peer, BPF_ANY as u64).is_ok()
            }
            #[inline(always)]
            fn remove_peer(&self, key: &SocketKey<$addr>) {
                // It may have expired.
                let _ = maps::$socks.remove(key);
            }
            #[inline(always)]
            fn affinity(&self, client: &SocketClient) -> Option<Affinity> {
                // SAFETY: as above; what is read is checked against the backend's row.
                let row = unsafe { maps::SK_AFFIN.get(client) }?;
                Some(Affinity {
                    backend: read(&row.backend),
                    generation: read(&row.generation),
                    seen: read(&row.seen),
                })
            }
            #[inline(always)]
            fn remember_affinity(&self, client: &SocketClient, affinity: &Affinity) {
                // Best effort: without the row the next flow goes where it may.
                let _ = maps::SK_AFFIN.insert(client, affinity, BPF_ANY as u64);
            }
            #[inline(always)]
            fn count_flow(&self, service: u32, backend: u32) {
                if config().features & Feature::COUNT_SERVICES != 0 {
                    let rows = [
                        maps::SVC_STATS.get_ptr_mut(service),
                        maps::$stats.get_ptr_mut(backend),
                    ];
                    for row in rows.into_iter().flatten() {
                        // SAFETY: this CPU's row; who interrupts can at worst hide one
                        // from the count.
                        unsafe { (*row).flows += 1 };
                    }
                }
            }
        }
    };
}

sockets!(
    Ip4,
    read4,
    FRONT_V4,
    BACK_V4,
    CONNS_V4,
    SOCKS_V4,
    BK_STATS4,
    tulle_pick4
);
sockets!(
    Ip6,
    read6,
    FRONT_V6,
    BACK_V6,
    CONNS_V6,
    SOCKS_V6,
    BK_STATS6,
    tulle_pick6
);
