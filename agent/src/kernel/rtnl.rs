//! A blocking route netlink socket for traffic control: the few messages that
//! attaching needs, on the calling thread's network namespace.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A socket, open for one conversation.
pub(crate) struct Rtnl {
    socket: Socket,
    sequence: u32,
}

/// What attaching wants to know of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    /// Its name, for people.
    pub name: String,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// XDP in the driver, in the stack, or none.
    pub xdp: Option<XdpAttached>,
}

impl Rtnl {
    /// Opens a socket.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request and returns what the kernel answers, to its end.
    pub(crate) fn ask(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(16)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                            return Ok(answers);
                        }
                    }
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }

    /// The device of this index; `None` if there is none.
    pub(crate) fn device(&mut self, ifindex: u32) -> io::Result<Option<Device>> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        let answers = match self.ask(RouteNetlinkMessage::GetLink(request), 0) {
            Ok(answers) => answers,
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(read_device(link)),
            _ => None,
        }))
    }
}

fn read_device(link: LinkMessage) -> Device {
    let mut device = Device {
        name: String::new(),
        veth: false,
        xdp: None,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::LinkInfo(infos) => {
                device.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Xdp(xdp) => {
                device.xdp = xdp.into_iter().find_map(|x| match x {
                    LinkXdp::Attached(XdpAttached::None) => None,
                    LinkXdp::Attached(how) => Some(how),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    device
}
