//! One netlink socket: dump, get, execute. Everything else here builds messages
//! for it or reads what it returns.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use rtnetlink::sys::AsyncSocket;
use tokio::sync::Mutex;

/// How often a dump that the kernel marked inconsistent is taken again.
const DUMP_TRIES: u32 = 8;
/// Receive buffer: the acknowledgements of all requests in flight fit.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How many requests a batch keeps in flight.
pub(crate) const IN_FLIGHT: usize = 64;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// Notifications cannot be read any more.
    #[error("cannot read netlink notifications: {0}")]
    Receive(#[source] io::Error),
    /// The kernel said no.
    #[error("cannot {what}: {cause}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// What was asked, as the end of a sentence that begins with "cannot".
        what: String,
        /// The kernel's error number.
        cause: io::Error,
        /// The kernel's own explanation, if it gave one.
        detail: Option<String>,
    },
    /// The socket's task has ended.
    #[error("cannot {what}: the netlink connection has ended")]
    Closed {
        /// What was asked.
        what: String,
    },
    /// The table changed under every attempt to read it.
    #[error("cannot {what}: it changed during each of {DUMP_TRIES} attempts")]
    Interrupted {
        /// What was asked.
        what: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    /// The object is not there (any more).
    pub(crate) fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL)
        )
    }
}

/// A netlink route socket of the network namespace of the thread that opened
/// it. Clones share the socket; it closes with the last of them.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel runs one dump at a time for each socket.
    dumping: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a socket. Must be called inside a tokio runtime, on the thread
    /// whose network namespace is meant.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Open)?;
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket
            .set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX))
            .and_then(|()| socket.set_cap_ack(true))
            .and_then(|()| socket.set_ext_ack(true))
            .map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            dumping: Arc::default(),
        })
    }

    /// All rows that answer `request`; `what` ends a sentence "cannot …".
    pub(crate) async fn dump(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let _one = self.dumping.lock().await;
        for attempt in 0..DUMP_TRIES {
            if let Some(rows) = self.dump_once(what, request.clone()).await? {
                return Ok(rows);
            }
            tokio::time::sleep(Duration::from_millis(1 << attempt)).await;
        }
        Err(NetlinkError::Interrupted { what: what.into() })
    }

    /// `None` if the table changed while it was read.
    async fn dump_once(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.send(what, message)?;
        let mut rows = Vec::new();
        let mut consistent = true;
        while let Some(answer) = answers.next().await {
            consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(row) => rows.push(row),
                NetlinkPayload::Done(done) if done.code == 0 => {
                    return Ok(consistent.then_some(rows));
                }
                NetlinkPayload::Done(done) => {
                    return Err(refused(what, done.code, &[]));
                }
                NetlinkPayload::Error(error) => {
                    return Err(refused(what, error.raw_code(), &error.header));
                }
                NetlinkPayload::Overrun(_) => consistent = false,
                _ => {}
            }
        }
        Err(NetlinkError::Closed { what: what.into() })
    }

    /// The row that answers `request`.
    pub(crate) async fn get(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self.send(what, message)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(row) => return Ok(row),
                NetlinkPayload::Error(error) => {
                    return Err(refused(what, error.raw_code(), &error.header));
                }
                _ => {}
            }
        }
        Err(NetlinkError::Closed { what: what.into() })
    }

    /// Does what `request` says, with extra `flags` (`NLM_F_CREATE` and the
    /// like), and waits for the kernel's word.
    pub(crate) async fn execute(
        &self,
        what: &str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.send(what, message)?;
        // The connection keeps acknowledgements to itself and ends the stream.
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(refused(what, error.raw_code(), &error.header));
            }
        }
        Ok(())
    }

    fn send(
        &self,
        what: &str,
        message: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<
        impl futures::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin + use<>,
        NetlinkError,
    > {
        self.handle
            .clone()
            .request(message)
            .map_err(|_| NetlinkError::Closed { what: what.into() })
            .map(Box::pin)
    }
}

fn refused(what: &str, code: i32, echoed: &[u8]) -> NetlinkError {
    NetlinkError::Refused {
        what: what.into(),
        cause: io::Error::from_raw_os_error(code.saturating_abs()),
        detail: explanation(echoed),
    }
}

/// The text that follows the echoed header of a refusal
/// (`NLMSGERR_ATTR_MSG`, Linux 4.12).
fn explanation(echoed: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    const TEXT: u16 = 1;
    NlasIterator::new(echoed.get(HEADER..)?)
        .map_while(Result::ok)
        .find(|nla| nla.kind() == TEXT)
        .and_then(|nla| {
            let text = nla.value();
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            String::from_utf8(text.to_vec()).ok()
        })
        .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut echoed = vec![0u8; 16];
        echoed.extend([11, 0, 1, 0]);
        echoed.extend(b"no way\0");
        echoed.push(0);
        let error = refused("add a route", -libc::EINVAL, &echoed);
        assert_eq!(
            error.to_string(),
            "cannot add a route: Invalid argument (os error 22) (no way)"
        );
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert!(!error.is_absent());
    }

    #[test]
    fn a_short_refusal_is_no_panic() {
        assert_eq!(explanation(&[]), None);
        assert_eq!(explanation(&[0; 17]), None);
    }
}
