//! Links, addresses, routes and settings of a namespace, through `ip` and
//! `/proc/sys`.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::wait;

/// An Ethernet address in wire order.
pub type MacAddr = [u8; 6];

/// Runs `ip ARGS` in the namespace.
pub fn ip(ns: &NetNs, args: &[&str]) -> Result<()> {
    run_in(ns, "ip", args).map(drop)
}

/// Runs `ip -j ARGS` in the namespace and parses what it prints.
pub fn ip_json(ns: &NetNs, args: &[&str]) -> Result<Value> {
    json(ns, "ip", &[&["-j"], args].concat())
}

/// Has a link leave checksums and segmentation to no other device.
pub fn send_whole_checksums(ns: &NetNs, link: &str) -> Result<()> {
    run_in(ns, "ethtool", &["-K", link, "tx", "off"]).map(drop)
}

/// Runs a command in the namespace and parses its output; no output is `[]`.
pub fn json(ns: &NetNs, program: &str, args: &[&str]) -> Result<Value> {
    let stdout = run_in(ns, program, args)?.stdout;
    if stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_slice(&stdout).map_err(|source| Error::Json {
        command: format!("[{}] {program} {}", ns.name(), args.join(" ")),
        source,
    })
}

/// Runs a command in the namespace to its end.
pub fn run_in(ns: &NetNs, program: &str, args: &[&str]) -> Result<Output> {
    let mut command = ns.command(program)?;
    command.args(args).stdin(Stdio::null());
    let name = format!("[{}] {program} {}", ns.name(), args.join(" "));
    let output = command.output().trying(|| format!("start `{name}`"))?;
    checked(name, output)
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let name = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let output = command.output().trying(|| format!("start `{name}`"))?;
    checked(name, output)
}

fn checked(command: String, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Command {
        command,
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs many `ip` command lines (without the word `ip`) in one process; stops
/// at the first that fails, and the error names it.
pub fn batch<S: AsRef<str>>(ns: &NetNs, lines: &[S]) -> Result<()> {
    let mut command = ns.command("ip")?;
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let what = || format!("run `ip -batch` in {}", ns.name());
    let mut child = command.spawn().trying(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        let text: String = lines.iter().flat_map(|l| [l.as_ref(), "\n"]).collect();
        // A batch that fails early closes its input: the exit status tells.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().trying(what)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let failed = failed_line(&stderr).and_then(|n| lines.get(n.checked_sub(1)?));
    let command = failed.map_or("-batch -", AsRef::as_ref);
    checked(format!("[{}] ip {command}", ns.name()), output).map(drop)
}

/// The line number in "Command failed -:3".
fn failed_line(stderr: &str) -> Option<usize> {
    let (_, rest) = stderr.split_once("Command failed -:")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Joins two namespaces by a veth pair.
pub fn veth(a: &NetNs, a_dev: &str, b: &NetNs, b_dev: &str) -> Result<()> {
    let line = format!(
        "link add {a_dev} type veth peer name {b_dev} netns {}",
        b.name()
    );
    batch(a, &[line])
}

/// A bridge without spanning tree and multicast snooping, up.
pub fn bridge(ns: &NetNs, dev: &str) -> Result<()> {
    batch(
        ns,
        &[
            format!("link add {dev} type bridge stp_state 0 mcast_snooping 0"),
            format!("link set {dev} up"),
        ],
    )
}

/// Adds an address in CIDR notation; IPv6 without duplicate detection.
pub fn address(ns: &NetNs, dev: &str, cidr: &str) -> Result<()> {
    let mut args = vec!["addr", "add", cidr, "dev", dev];
    if cidr.contains(':') {
        args.push("nodad");
    }
    ip(ns, &args)
}

/// Sets a link's largest packet in bytes, Ethernet header not counted.
pub fn set_mtu(ns: &NetNs, dev: &str, mtu: u32) -> Result<()> {
    ip(ns, &["link", "set", dev, "mtu", &mtu.to_string()])
}

/// A link's MTU in bytes.
pub fn mtu(ns: &NetNs, dev: &str) -> Result<u32> {
    number(ns, dev, "mtu")
}

/// Waits until a link carries packets. Of a veth pair, the end that was set up
/// first drops what it should send until the kernel's own work has seen that
/// the other end is up too.
pub fn wait_up(ns: &NetNs, dev: &str) -> Result<()> {
    let what = format!("link {dev} in namespace {} is not up", ns.name());
    wait::until(&what, Duration::from_secs(5), || {
        Ok((show(ns, dev, "operstate")? == "UP").then_some(()))
    })
}

/// A link's interface index.
pub fn ifindex(ns: &NetNs, dev: &str) -> Result<u32> {
    number(ns, dev, "ifindex")
}

/// A link's Ethernet address.
pub fn mac(ns: &NetNs, dev: &str) -> Result<MacAddr> {
    let value = show(ns, dev, "address")?;
    value
        .as_str()
        .and_then(parse_mac)
        .ok_or_else(|| lacks(ns, dev, "address"))
}

fn show(ns: &NetNs, dev: &str, field: &str) -> Result<Value> {
    let links = ip_json(ns, &["link", "show", "dev", dev])?;
    Ok(links[0][field].clone())
}

fn number(ns: &NetNs, dev: &str, field: &str) -> Result<u32> {
    show(ns, dev, field)?
        .as_u64()
        .and_then(|n| n.try_into().ok())
        .ok_or_else(|| lacks(ns, dev, field))
}

fn lacks(ns: &NetNs, dev: &str, field: &str) -> Error {
    Error::Invalid(format!(
        "link {dev} in namespace {} has no {field}",
        ns.name()
    ))
}

/// Parses `02:00:00:00:00:01`.
pub fn parse_mac(text: &str) -> Option<MacAddr> {
    let mut octets = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok());
    let mut mac = [0; 6];
    for octet in &mut mac {
        *octet = octets.next()??;
    }
    octets.next().is_none().then_some(mac)
}

/// Writes an Ethernet address as `ip` does.
pub fn format_mac(mac: MacAddr) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Writes a setting, as in `net.ipv4.ip_forward`, in the namespace.
pub fn sysctl(ns: &NetNs, key: &str, value: &str) -> Result<()> {
    sysctls(ns, &[(key, value)])
}

/// Writes several settings in order.
pub fn sysctls(ns: &NetNs, pairs: &[(&str, &str)]) -> Result<()> {
    ns.run(|| {
        for (key, value) in pairs {
            std::fs::write(sysctl_path(key), value)
                .trying(|| format!("set {key}={value} in namespace {}", ns.name()))?;
        }
        Ok(())
    })?
}

/// Reads a setting in the namespace.
pub fn read_sysctl(ns: &NetNs, key: &str) -> Result<String> {
    ns.run(|| {
        let text = std::fs::read_to_string(sysctl_path(key))
            .trying(|| format!("read {key} in namespace {}", ns.name()))?;
        Ok(text.trim().to_owned())
    })?
}

/// Dots separate; a slash stands for a dot inside an interface's name.
fn sysctl_path(key: &str) -> String {
    let path: String = key
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    format!("/proc/sys/{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_go_there_and_back() {
        let mac = [2, 0, 0xab, 0xcd, 0, 0xff];
        assert_eq!(format_mac(mac), "02:00:ab:cd:00:ff");
        assert_eq!(parse_mac("02:00:ab:cd:00:ff"), Some(mac));
        assert_eq!(parse_mac("02:00:ab:cd:00"), None);
        assert_eq!(parse_mac("02:00:ab:cd:00:ff:01"), None);
    }

    #[test]
    fn failed_batch_line_is_found() {
        let stderr = "RTNETLINK answers: File exists\nCommand failed -:3\n";
        assert_eq!(failed_line(stderr), Some(3));
        assert_eq!(failed_line("nothing"), None);
    }
}
