//! Many octets over one TCP connection, there and back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::error::{Context, Result};
use crate::netns::NetNs;
use crate::probe::path_mtu;

/// Octets in one write.
const CHUNK: usize = 64 << 10;

/// What a transfer saw.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Who answered.
    pub pod: String,
    /// From the first octet sent to the last that came back.
    pub elapsed: Duration,
    /// The path MTU that the connection used at its end, in octets.
    pub path_mtu: u32,
}

/// Sends `octets` from a namespace to an [`EchoServer`](crate::echo::EchoServer)
/// and checks each one that comes back. `limit` bounds every single wait.
pub fn transfer(
    ns: &NetNs,
    server: SocketAddr,
    octets: usize,
    limit: Duration,
) -> Result<Transfer> {
    let what = || format!("exchange {octets} octets with {server}");
    let stream = ns
        .run(|| TcpStream::connect_timeout(&server, limit))?
        .trying(what)?;
    stream.set_read_timeout(Some(limit)).trying(what)?;
    stream.set_write_timeout(Some(limit)).trying(what)?;
    let pod = name(&stream).trying(what)?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&stream, octets));
        let checked = check(&stream, octets);
        if checked.is_err() {
            let _ = stream.shutdown(Shutdown::Both); // the sender need not wait
        }
        let sent = match sending.join() {
            Ok(sent) => sent,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // The reader's error is the cause of the sender's, if both failed.
        checked.and(sent)
    })
    .trying(what)?;
    Ok(Transfer {
        pod,
        elapsed: began.elapsed(),
        path_mtu: path_mtu(&stream, server)?,
    })
}

/// The line that the server begins with.
fn name(mut stream: &TcpStream) -> io::Result<String> {
    let mut name = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&name).into_owned());
        }
        name.push(byte[0]);
    }
}

/// The octet at a position; 251 is no divisor of any buffer's size.
fn octet(at: usize) -> u8 {
    (at % 251) as u8
}

fn send(mut stream: &TcpStream, octets: usize) -> io::Result<()> {
    let mut sent = 0;
    while sent < octets {
        let end = octets.min(sent + CHUNK);
        let chunk: Vec<u8> = (sent..end).map(octet).collect();
        stream.write_all(&chunk)?;
        sent = end;
    }
    Ok(())
}

fn check(mut stream: &TcpStream, octets: usize) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut seen = 0;
    while seen < octets {
        let len = stream.read(&mut buffer)?;
        let wrong = (seen..)
            .zip(&buffer[..len])
            .find(|(at, b)| octet(*at) != **b);
        let fault = match wrong {
            Some((at, _)) => format!("octet {at} came back as another"),
            None if len == 0 => format!("closed after {seen} octets"),
            None => {
                seen += len;
                continue;
            }
        };
        return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
    }
    Ok(())
}
