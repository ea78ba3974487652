//! The sender's address by which `tulle_nic_in` knows what `tulle_xdp` took out of the
//! overlay. It is random and never on a link: who could guess it could send as a pod.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use datapath_common::Mac;

/// Octets of an Ethernet address.
const OCTETS: usize = 6;
/// In the first octet: a group's address, one that no manufacturer gave.
const GROUP: u8 = 1;
const LOCAL: u8 = 2;

/// The address that `file` holds, or a new one that it holds from now on: programs of a
/// former agent and new ones are to agree while one replaces the other.
///
/// # Errors
///
/// The kernel gives no random octets, or the file cannot be read or written.
pub fn sender(file: &Path) -> anyhow::Result<Mac> {
    match fs::read(file) {
        Ok(octets) => {
            if let Ok(octets) = <[u8; OCTETS]>::try_from(octets)
                && octets[0] & (GROUP | LOCAL) == LOCAL
            {
                return Ok(Mac::new(octets));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
    let mac = random()?;
    write(file, mac).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(mac)
}

fn random() -> anyhow::Result<Mac> {
    let mut octets = [0; OCTETS];
    // SAFETY: the buffer is as long as said.
    let got = unsafe { libc::getrandom(octets.as_mut_ptr().cast(), OCTETS, 0) };
    if usize::try_from(got) != Ok(OCTETS) {
        return Err(io::Error::last_os_error()).context("the kernel gives no random octets");
    }
    octets[0] = octets[0] & !GROUP | LOCAL;
    Ok(Mac::new(octets))
}

/// For root alone to read, and never half of it.
fn write(file: &Path, mac: Mac) -> io::Result<()> {
    let next = file.with_extension("next");
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut out = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)?;
    out.write_all(&mac.octets())?;
    fs::rename(&next, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_stays_and_is_told_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stripped-mac");
        let first = sender(&file).unwrap();
        assert_eq!(first.octets()[0] & 3, 2, "{first} is a local station's");
        assert_eq!(sender(&file).unwrap(), first);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = sender(&dir.path().join("other")).unwrap();
        assert_ne!(other, first);
    }

    #[test]
    fn what_is_no_address_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stripped-mac");
        for octets in [&[][..], &[2; 5], &[0; 6], &[3, 0, 0, 0, 0, 1]] {
            fs::write(&file, octets).unwrap();
            let mac = sender(&file).unwrap();
            assert_eq!(fs::read(&file).unwrap(), mac.octets());
        }
    }
}
