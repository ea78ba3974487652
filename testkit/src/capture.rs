//! Frames as they pass an interface of a namespace, and frames put onto one.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recvfrom, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::packet::{self, L4, Vxlan};

/// Largest frame: a segmentation-offload packet with its Ethernet header.
const FRAME_MAX: usize = 65_535 + 18;
/// Longest that a quiet capture takes to notice that it is stopped.
const POLL: Duration = Duration::from_millis(20);
/// Longest that a stopped capture goes on reading what is queued.
const DRAIN: Duration = Duration::from_millis(500);

/// A frame that passed an interface.
#[derive(Clone, Debug)]
pub struct Captured {
    /// When it was read.
    pub at: SystemTime,
    /// Whether the namespace sent it; otherwise it received it.
    pub outgoing: bool,
    /// Its bytes from the Ethernet header on. A checksum that the sender left
    /// to the device is incomplete; a VLAN tag may have been taken out.
    pub bytes: Vec<u8>,
}

/// A running capture. Stops on drop.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    max: usize,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default, Debug)]
struct State {
    frames: Vec<Captured>,
    missed: usize,
    failed: Option<String>,
}

impl Capture {
    /// Begins to capture at the interface `dev`; frames beyond `max` are
    /// counted only. When this returns, the next frame will be seen.
    pub fn start(ns: &NetNs, dev: &str, max: usize) -> Result<Self> {
        let fd = ns.run(|| open(dev, true))??;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            max,
            state: Mutex::default(),
            arrived: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("capture-{dev}"))
            .spawn(move || for_thread.receive(&fd))
            .trying(|| "start a capture thread".to_owned())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Waits for a frame that fits, among those seen and those to come.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut fits: impl FnMut(&Captured) -> bool,
    ) -> Result<Captured> {
        let deadline = Instant::now() + limit;
        let mut looked_at = 0;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = state.frames[looked_at..].iter().find(|frame| fits(frame)) {
                return Ok(found.clone());
            }
            looked_at = state.frames.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failed.is_some() {
                let failed = state.failed.as_deref().unwrap_or("");
                let detail = format!(" ({looked_at} other frames were seen) {failed}");
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    limit,
                    detail,
                });
            }
            let waited = self.shared.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The frames so far.
    pub fn frames(&self) -> Vec<Captured> {
        self.shared.lock().frames.clone()
    }

    /// Ends the capture. An error if frames were lost for want of room.
    pub fn stop(mut self) -> Result<Vec<Captured>> {
        self.finish();
        let mut state = self.shared.lock();
        if let Some(failed) = &state.failed {
            return Err(Error::Invalid(format!("the capture ended early: {failed}")));
        }
        if state.missed > 0 {
            return Err(Error::Invalid(format!(
                "the capture had room for {} frames and {} more came; start it with more room",
                self.shared.max, state.missed
            )));
        }
        Ok(std::mem::take(&mut state.frames))
    }

    fn finish(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // the thread has no panic of its own
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, fd: &OwnedFd) {
        let mut buffer = vec![0; FRAME_MAX];
        let mut stopping: Option<Instant> = None;
        loop {
            // What was sent before the stop may still be in the socket's queue.
            if stopping.is_none() && self.stop.load(Ordering::Relaxed) {
                stopping = Some(Instant::now());
            }
            if stopping.is_some_and(|since| since.elapsed() > DRAIN) {
                return;
            }
            match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
                Ok((len, from)) => {
                    let outgoing = from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
                    let bytes = buffer[..len].to_vec();
                    let mut state = self.lock();
                    if state.frames.len() < self.max {
                        state.frames.push(Captured {
                            at: SystemTime::now(),
                            outgoing,
                            bytes,
                        });
                    } else {
                        state.missed += 1;
                    }
                }
                Err(Errno::EAGAIN) if stopping.is_some() => return,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(e) => {
                    self.lock().failed = Some(e.to_string());
                    self.arrived.notify_all();
                    return;
                }
            }
            self.arrived.notify_all();
        }
    }
}

/// Sends a frame out of an interface of a namespace, as a host there would.
pub fn inject(ns: &NetNs, dev: &str, frame: &[u8]) -> Result<()> {
    inject_all(ns, dev, &[frame])
}

/// Sends frames in order.
pub fn inject_all<B: AsRef<[u8]> + Sync>(ns: &NetNs, dev: &str, frames: &[B]) -> Result<()> {
    ns.run(|| {
        let fd = open(dev, false)?;
        for frame in frames {
            send(fd.as_raw_fd(), frame.as_ref(), MsgFlags::empty()).trying(|| {
                format!(
                    "send a frame of {} octets out of {dev}",
                    frame.as_ref().len()
                )
            })?;
        }
        Ok(())
    })?
}

/// A packet socket of the calling thread's namespace, bound to `dev`.
fn open(dev: &str, receive: bool) -> Result<OwnedFd> {
    let what = || format!("open a packet socket at {dev}");
    // Without a protocol it receives nothing before it is bound.
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .trying(what)?;
    let index = if_nametoindex(dev).trying(|| format!("find interface {dev}"))?;
    if receive {
        let time = TimeVal::new(0, POLL.subsec_micros().into());
        setsockopt(&fd, sockopt::ReceiveTimeout, &time).trying(what)?;
        setsockopt(&fd, sockopt::RcvBuf, &(4 << 20)).trying(what)?;
    }
    let protocol = if receive {
        (libc::ETH_P_ALL as u16).to_be()
    } else {
        0
    };
    let address = link_address(index, protocol)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        .trying(what)?;
    bind(fd.as_raw_fd(), &address).trying(what)?;
    Ok(fd)
}

fn link_address(index: u32, protocol: u16) -> Option<LinkAddr> {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole `sockaddr_ll` of length `len`, which is
    // alive and is copied by the call.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(len)) }
}

/// A VXLAN packet in four lines for people, if the frame is one to UDP port
/// `port`.
pub fn describe_vxlan(bytes: &[u8], port: u16) -> Option<String> {
    let outer = packet::parse(bytes).ok()?;
    let Some(L4::Udp(udp)) = outer.upper() else {
        return None;
    };
    if udp.dport != port {
        return None;
    }
    let Vxlan { flags, vni, inner } = packet::unwrap_vxlan(&outer).ok()?;
    let inner_frame = packet::parse(&inner).ok()?;
    let macs = |frame: &packet::Frame| {
        format!(
            "{} > {}",
            crate::link::format_mac(frame.src),
            crate::link::format_mac(frame.dst)
        )
    };
    Some(format!(
        "outer  Ethernet  {}, {} octets\n       IP        {outer}\n       VXLAN     VNI {vni}, flags {flags:#04x}\ninner  Ethernet  {}, {} octets\n       IP        {inner_frame}",
        macs(&outer),
        bytes.len(),
        macs(&inner_frame),
        inner.len(),
    ))
}
