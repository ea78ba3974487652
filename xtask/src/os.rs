//! Which distribution this is.

use std::collections::BTreeMap;
use std::fs;

/// What `/etc/os-release` says (os-release(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Os {
    id: String,
    version: String,
    name: String,
}

impl Os {
    /// Reads this machine's os-release file; a machine without one is "linux".
    pub fn detect() -> Self {
        ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok())
            .map_or_else(|| Self::parse(""), |text| Self::parse(&text))
    }

    /// Takes the text of an os-release file; defaults are those of os-release(5).
    pub fn parse(text: &str) -> Self {
        let fields: BTreeMap<&str, String> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim(), unquoted(value.trim())))
            .collect();
        let field = |key, default: &str| fields.get(key).cloned().unwrap_or_else(|| default.into());
        Self {
            id: field("ID", "linux"),
            version: field("VERSION_ID", ""),
            name: field("PRETTY_NAME", "Linux"),
        }
    }

    /// Debian 12, the distribution whose packages `setup` knows how to install.
    pub fn is_debian_12(&self) -> bool {
        self.id == "debian" && self.version == "12"
    }

    /// The name for people.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Takes off one pair of quotes and the backslashes of a shell-like assignment.
fn unquoted(value: &str) -> String {
    let inner = ['"', '\'']
        .iter()
        .find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_debian_12_quoted_or_not() {
        let os = Os::parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n",
        );
        assert!(os.is_debian_12());
        assert_eq!(os.name(), "Debian GNU/Linux 12 (bookworm)");
        assert!(Os::parse("# a remark\nID='debian'\nVERSION_ID=12").is_debian_12());
    }

    #[test]
    fn others_are_not_debian_12() {
        for text in [
            "",
            "ID=debian",
            "ID=debian\nVERSION_ID=13",
            "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"12\"",
            "#ID=debian\nVERSION_ID=12",
            "no assignment here",
        ] {
            assert!(!Os::parse(text).is_debian_12(), "{text:?}");
        }
        assert_eq!(Os::parse("").name(), "Linux");
    }

    #[test]
    fn escapes_inside_quotes_are_taken_off() {
        assert_eq!(
            Os::parse(r#"PRETTY_NAME="A \"B\" \\ \$C""#).name(),
            r#"A "B" \ $C"#
        );
    }
}
