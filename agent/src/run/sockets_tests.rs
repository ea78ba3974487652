use std::path::PathBuf;

use super::*;
use crate::args::SocketServices::{All, Auto, Host, Off};

type Change = fn(&mut Surroundings);

/// An agent on its host, as it should be.
fn host() -> Surroundings {
    Surroundings {
        sees_init: true,
        with_init: Some(true),
        mounts: vec![("/part".into(), false), ("/cg".into(), true)],
        keeps_own: true,
    }
}

fn place(
    around: &Surroundings,
    asked: SocketServices,
    named: Option<&str>,
) -> Result<(SocketServices, PathBuf), String> {
    let (mode, path, _) = around.place(asked, named.map(Path::new))?;
    Ok((mode, path.to_owned()))
}

#[test]
fn sockets_are_served_unasked_on_the_host_alone() {
    assert_eq!(place(&host(), Auto, None), Ok((All, "/cg".into())));
    let cases: [(&str, Change); 6] = [
        ("hostPID", |a| a.sees_init = false),
        ("network namespace of process 1", |a| {
            a.with_init = Some(false);
        }),
        ("network namespace of process 1", |a| a.with_init = None),
        ("/part is only a part", |a| a.mounts.truncate(1)),
        ("cgroup2 none /sys/fs/cgroup/unified", |a| a.mounts.clear()),
        ("6.1.106", |a| a.keeps_own = false),
    ];
    for (said, change) in cases {
        let mut around = host();
        change(&mut around);
        let why = place(&around, Auto, None).unwrap_err();
        assert!(why.contains(said), "{why}");
        // A cgroup that is named is for this node, and who asks has it.
        assert_eq!(
            place(&around, Auto, Some("/mine")),
            Ok((All, "/mine".into()))
        );
        if let Some((first, _)) = around.mounts.iter().max_by_key(|(_, whole)| *whole) {
            let first = first.clone();
            assert_eq!(place(&around, Host, None), Ok((Host, first.clone())));
            assert_eq!(place(&around, All, None), Ok((All, first)));
        } else {
            assert!(place(&around, All, None).is_err());
        }
    }
    assert!(place(&host(), Off, Some("/mine")).is_err());
}

#[test]
fn this_process_is_somewhere() {
    let around = Surroundings::look();
    // Whatever this is run in, process 1 can be seen, and what is looked at exists.
    assert!(around.mounts.iter().all(|(path, _)| path.is_absolute()));
    if !around.sees_init {
        let why = place(&around, Auto, None).unwrap_err();
        assert!(why.contains("hostPID"), "{why}");
    }
}

#[test]
fn what_was_asked_for_and_cannot_be_is_a_fault() {
    let around = Surroundings {
        mounts: Vec::new(),
        ..host()
    };
    let made = |asked| SocketChoice::make(asked, None, &around);
    assert!(made(All).fault.is_some());
    assert_eq!(made(Auto).fault, None);
    assert_eq!(made(Off).fault, None);
    assert_eq!(made(Auto).chosen(), "off");
    // Said once, and looked for again.
    assert!(made(Auto).is_stale());
    assert!(made(Auto).next(made(Auto)).is_none());
    let other = SocketChoice::make(
        Auto,
        None,
        &Surroundings {
            sees_init: false,
            ..around.clone()
        },
    );
    assert!(made(Auto).next(other).is_some());
    let refused = SocketChoice {
        refused: true,
        ..made(All)
    };
    assert!(!refused.is_stale());
}

#[test]
fn features_follow_the_mode() {
    let choice = |mode| SocketChoice {
        mode,
        why: String::new(),
        cgroup: None,
        netns: [3, 0],
        fault: None,
        attached: true,
        failed: None,
        refused: false,
    };
    let features = |mode, node| {
        let mut config = Config::EMPTY;
        choice(mode).configure(&mut config, node);
        config.features
    };
    let (pods, node) = (Feature::POD_SOCKETS, Feature::NODE_SOCKETS);
    assert_eq!(features(SocketServices::All, true), pods | node);
    assert_eq!(features(SocketServices::All, false), pods);
    assert_eq!(features(SocketServices::Host, true), node);
    assert_eq!(features(SocketServices::Host, false), 0);
    assert_eq!(features(SocketServices::Off, true), 0);
    let served = |mode, node| choice(mode).served(node).0;
    assert_eq!(served(SocketServices::All, true), "for all processes");
    assert_eq!(served(SocketServices::All, false), "for pods' processes");
    assert_eq!(
        served(SocketServices::Host, true),
        "for the node's processes"
    );
    assert_eq!(served(SocketServices::Host, false), "off");
    assert_eq!(served(SocketServices::Off, true), "off");
    let mut failing = choice(SocketServices::All);
    failing.attached = false;
    failing.failed = Some("refused".to_owned());
    assert_eq!(failing.served(true), ("off", "refused".to_owned()));
}
