//! One request to an agent, with all that comes back.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use testkit::netns::NetNs;

use super::LIMIT;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// Sends `request` on a new connection and reads to its end.
pub fn ask(ns: &NetNs, at: SocketAddr, request: &str) -> std::io::Result<Answer> {
    let asked = ns.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    });
    let text = asked.unwrap()?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(ErrorKind::InvalidData)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    Ok(Answer {
        status: status.unwrap().parse().unwrap(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    })
}

/// A request for a path.
pub fn get_path(ns: &NetNs, at: SocketAddr, path: &str) -> std::io::Result<Answer> {
    ask(
        ns,
        at,
        &format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n"),
    )
}
