//! Refusals and choices, without a kernel that gives cause for them.

use super::*;

fn status(effective: u64) -> String {
    format!("Name:\tx\nCapPrm:\t{effective:016x}\nCapEff:\t{effective:016x}\n")
}

#[test]
fn capabilities() {
    let refused = |bits: u64| check_capabilities(&status(bits)).map_err(|e| e.to_string());
    assert!(refused(1 << 12 | 1 << 21).is_ok());
    assert!(refused(1 << 12 | 1 << 38 | 1 << 39).is_ok());
    assert!(
        refused(1 << 12 | 1 << 39)
            .unwrap_err()
            .contains("lacks CAP_PERFMON:")
    );
    assert!(
        refused(1 << 21)
            .unwrap_err()
            .contains("lacks CAP_NET_ADMIN:")
    );
    let none = refused(0).unwrap_err();
    assert!(
        none.contains("CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON: run it as root"),
        "{none}"
    );
}

#[test]
fn releases() {
    assert_eq!(check_release("5.15.0-91-generic\n").unwrap(), (5, 15));
    assert_eq!(check_release("6.18.44").unwrap(), (6, 18));
    assert_eq!(check_release("10.0-rc1").unwrap(), (10, 0));
    for old in ["5.14.21", "4.19.0-26-amd64", "nonsense"] {
        let said = check_release(old).unwrap_err().to_string();
        assert!(said.contains(old) && said.contains("5.15"), "{said}");
    }
}

#[test]
fn a_directory_elsewhere_is_refused_with_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().join("a/b");
    let said = check_bpffs(&pins).unwrap_err().to_string();
    assert!(
        said.contains(&format!("mount -t bpf bpf {}", pins.display())),
        "{said}"
    );
}

#[test]
fn missing_btf_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let sources = Sources {
        status: write("status", &status(u64::MAX)),
        release: write("release", "6.1.0\n"),
        btf: dir.path().join("vmlinux"),
        jit: write("jit", "1\n"),
    };
    let refusal = probe(&sources, dir.path()).unwrap_err();
    assert!(matches!(&refusal, Refusal::NoBtf { path } if *path == sources.btf));
    assert!(refusal.to_string().contains("CONFIG_DEBUG_INFO_BTF"));
}

#[test]
fn attach_choice() {
    let no = || Err(io::Error::from_raw_os_error(libc::EINVAL));
    assert_eq!(choose_attach((6, 6), Ok(Vec::new())).0, AttachKind::Tcx);
    let (kind, said) = choose_attach((6, 1), no());
    assert_eq!((kind, said.chosen), (AttachKind::Clsact, "clsact"));
    assert!(said.why.contains("6.6"));
    let (kind, said) = choose_attach((6, 8), no());
    assert_eq!(kind, AttachKind::Clsact);
    assert!(said.why.contains("refuses"), "{}", said.why);
}

#[test]
fn decap_choice() {
    assert!(choose_decap((6, 3), Ok(true)).0);
    assert!(!choose_decap((6, 1), Ok(false)).0);
    assert!(!choose_decap((6, 8), Ok(false)).0);
    let unknown = || Err(io::Error::from_raw_os_error(libc::EPERM));
    assert!(choose_decap((6, 3), unknown()).0);
    assert!(!choose_decap((6, 2), unknown()).0);
}

#[test]
fn calls_choice() {
    let (calls, said) = choose_calls((6, 1));
    assert_eq!((calls, said.chosen), (true, "called"));
    let (calls, said) = choose_calls((6, 5));
    assert_eq!((calls, said.chosen), (false, "inline"));
}
