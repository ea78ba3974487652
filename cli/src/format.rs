//! Numbers, addresses and times as people read them.

use std::borrow::Cow;

use datapath_common::{TICK_NANOS, proto};
use nix::time::{ClockId, clock_gettime};

/// A number in groups of three: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and its noun, which takes an s: `1 flow`, `2 flows`.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// Bytes in binary units: `512 B`, `1.5 KiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    // Tenths in integers: rounding down never shows 1024.0 of a unit.
    let (mut tenths, mut unit) = (n.saturating_mul(10) / 1024, 0);
    if n > u64::MAX / 10 {
        (tenths, unit) = (n / 1024 * 10 / 1024, 1);
    }
    while tenths >= 10_240 {
        tenths /= 1024;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Seconds as two units at most: `12s`, `3m05s`, `2h07m`, `4d03h`.
pub fn age(secs: u64) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86_400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", secs % 60)
    } else {
        format!("{secs}s")
    }
}

/// Microseconds: `850 µs`, `12.3 ms`, `4.56 s`.
pub fn micros(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} µs"),
        1_000..1_000_000 => format!("{}.{} ms", n / 1_000, n / 100 % 10),
        _ => format!("{}.{:02} s", n / 1_000_000, n / 10_000 % 100),
    }
}

/// Part of a whole in percent, with one decimal: `12.5 %`.
pub fn percent(part: u64, whole: u64) -> String {
    let thousandths = (u128::from(part) * 1000)
        .checked_div(u128::from(whole))
        .unwrap_or(0);
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// Name of an IP protocol.
pub fn protocol(number: u8) -> Cow<'static, str> {
    match number {
        proto::ICMP => "ICMP".into(),
        proto::TCP => "TCP".into(),
        proto::UDP => "UDP".into(),
        proto::ICMPV6 => "ICMPv6".into(),
        proto::SCTP => "SCTP".into(),
        0 => "any".into(),
        other => format!("IP {other}").into(),
    }
}

/// Seconds from one tick to a later one; 0 if it is not later.
pub const fn ticks_to_secs(from: u32, to: u32) -> u64 {
    to.saturating_sub(from) as u64 * TICK_NANOS / 1_000_000_000
}

/// `CLOCK_MONOTONIC` in nanoseconds.
///
/// # Errors
///
/// If the kernel has no such clock.
pub fn monotonic_nanos() -> nix::Result<u64> {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970-01-01 UTC.
///
/// # Errors
///
/// If the kernel has no such clock.
pub fn unix_nanos() -> nix::Result<u64> {
    nanos(ClockId::CLOCK_REALTIME)
}

fn nanos(clock: ClockId) -> nix::Result<u64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
}

/// The present tick.
///
/// # Errors
///
/// If the kernel has no such clock.
pub fn now_tick() -> nix::Result<u32> {
    Ok((monotonic_nanos()? / TICK_NANOS) as u32)
}

/// Time of day in UTC from nanoseconds since 1970: `09:03:12.045`.
pub fn time_of_day(unix_nanos: u64) -> String {
    let millis = unix_nanos / 1_000_000;
    let secs = millis / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        secs / 3600,
        secs / 60 % 60,
        secs % 60,
        millis % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let texts = [0, 999, 1_000, 65_536, 1_234_567].map(count);
        assert_eq!(texts, ["0", "999", "1,000", "65,536", "1,234,567"]);
        assert_eq!(
            (counted(1, "flow"), counted(2, "flow")),
            ("1 flow".into(), "2 flows".into())
        );
    }

    #[test]
    fn bytes_have_units() {
        let texts = [0, 1023, 1024, 1536, 1024 * 1024 - 1, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(
            texts,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "1023.9 KiB",
                "5.0 GiB",
                "15.9 EiB"
            ]
        );
    }

    #[test]
    fn ages_have_two_units() {
        let texts = [0, 59, 65, 3_600, 90_000].map(age);
        assert_eq!(texts, ["0s", "59s", "1m05s", "1h00m", "1d01h"]);
        // 56 ticks of 2^30 ns are 60.1 s.
        assert_eq!((ticks_to_secs(100, 156), ticks_to_secs(100, 99)), (60, 0));
    }

    #[test]
    fn small_times_and_parts() {
        assert_eq!(
            [850, 12_345, 4_567_890].map(micros),
            ["850 µs", "12.3 ms", "4.56 s"]
        );
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(1, 0), "0.0 %");
        assert_eq!(
            time_of_day(86_400_000_000_000 * 3 + 3_723_045_000_000),
            "01:02:03.045"
        );
    }
}
