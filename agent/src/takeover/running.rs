//! Whether a kube-proxy still runs for this node: it would write its rules again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Where a kube-proxy says its mode, unless it was told otherwise.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// For an answer from this machine.
const SOON: Duration = Duration::from_secs(1);
/// Inode number of the kernel's first PID namespace (`linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Sentences about kube-proxies of this network namespace.
pub fn find(proc: &Path) -> Vec<String> {
    let mut found: Vec<String> = processes(proc)
        .into_iter()
        .map(|pid| format!("process {pid} is a kube-proxy"))
        .collect();
    // One that is a part of another program, as k3s has it, is no process of this name.
    if found.is_empty()
        && let Some(mode) = mode(METRICS)
    {
        found.push(format!("a kube-proxy in mode {mode} answers at {METRICS}"));
    }
    found
}

/// Whether the host's processes can be seen.
pub fn sees_processes(proc: &Path) -> bool {
    let own = std::fs::metadata(proc.join("self/ns/pid"));
    own.is_ok_and(|own| own.ino() == FIRST_PID_NAMESPACE)
}

fn processes(proc: &Path) -> Vec<u32> {
    let own = std::fs::metadata(proc.join("self/ns/net")).map(|own| own.ino());
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| is_kube_proxy(&proc.join(pid.to_string())))
        .filter(|pid| {
            let its = std::fs::metadata(proc.join(format!("{pid}/ns/net")));
            // One whose namespace cannot be seen counts.
            match (&own, its) {
                (Ok(own), Ok(its)) => *own == its.ino(),
                _ => true,
            }
        })
        .collect();
    found.sort_unstable();
    found
}

fn is_kube_proxy(process: &Path) -> bool {
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let mut words = line.split(|octet| *octet == 0);
    let is_it = |word: Option<&[u8]>| {
        let word = word.unwrap_or_default();
        word.rsplit(|octet| *octet == b'/').next() == Some(b"kube-proxy")
    };
    // As a command of one binary that has all of them, too (`hyperkube kube-proxy`).
    is_it(words.next()) || is_it(words.next())
}

/// The mode that a kube-proxy says to be in.
fn mode(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, SOON).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    let request = format!("GET /proxyMode HTTP/1.0\r\nHost: {at}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // What came until then counts: the other end may not close.
    let _ = stream.take(4096).read_to_end(&mut answer);
    mode_in(&String::from_utf8_lossy(&answer))
}

fn mode_in(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let ok = head.split_whitespace().nth(1) == Some("200");
    let mode = body.trim();
    (ok && matches!(mode, "iptables" | "ipvs" | "nftables")).then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxies_are_known_by_their_command_lines() {
        let proc = tempfile::tempdir().unwrap();
        let lines = [
            ("10", "/usr/local/bin/kube-proxy\0--config=x\0"),
            ("11", "hyperkube\0kube-proxy\0"),
            ("12", "grep\0--\0kube-proxy\0"),
            ("13", "kube-proxy-exporter\0"),
            ("x", "kube-proxy\0"),
        ];
        for (pid, line) in lines {
            std::fs::create_dir(proc.path().join(pid)).unwrap();
            std::fs::write(proc.path().join(pid).join("cmdline"), line).unwrap();
        }
        assert_eq!(processes(proc.path()), [10, 11]);
        assert_eq!(processes(Path::new("/nonexistent")), [0; 0]);
    }

    #[test]
    fn only_a_mode_of_kube_proxys_counts() {
        let of =
            |status: &str, body: &str| mode_in(&format!("HTTP/1.0 {status}\r\nA: b\r\n\r\n{body}"));
        assert_eq!(of("200 OK", "ipvs").as_deref(), Some("ipvs"));
        assert_eq!(of("200 OK", "nftables\n").as_deref(), Some("nftables"));
        assert_eq!(of("404 Not Found", "ipvs"), None);
        assert_eq!(of("200 OK", "<html>"), None);
        assert_eq!(mode_in(""), None);
    }
}
