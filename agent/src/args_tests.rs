use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn run(more: &[&str]) -> Result<RunArgs, clap::Error> {
    let base = ["tulle-agent", "run", "--state", "/s", "--node", "node-1"];
    match Args::try_parse_from(base.iter().chain(more))?.verb {
        Verb::Run(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn every_option_has_a_variable() {
    for verb in Args::command().get_subcommands() {
        for option in verb
            .get_arguments()
            .filter(|a| a.get_long() != Some("help"))
        {
            let long = option.get_long().unwrap();
            let want = format!("TULLE_{}", long.replace('-', "_").to_uppercase());
            let env = option
                .get_env()
                .unwrap_or_else(|| panic!("--{long} has no variable"));
            assert_eq!(env.to_str(), Some(want.as_str()));
        }
    }
}

#[test]
fn defaults_are_the_objects_sizes() {
    let args = run(&[]).unwrap();
    assert_eq!(Capacities::from(&args.sizes), Capacities::DEFAULT);
    assert_eq!(
        crate::plan::Capacities::from(&args.sizes),
        crate::plan::Capacities::default()
    );
    assert_eq!((args.overlay.vni, args.overlay.vxlan_port), (1, 8472));
    assert_eq!(args.places.bpffs, Path::new("/sys/fs/bpf/tulle"));
    assert_eq!(args.places.socket(), Path::new("/run/tulle/agent.sock"));
}

/// API servers send bookmarks once a minute.
#[test]
fn a_silence_that_is_no_silence_is_refused() {
    let silence = |secs: &str| run(&["--api-silence", secs]).map(|args| args.cluster.api_silence);
    assert_eq!(silence("60").unwrap(), 60);
    for secs in ["0", "59", "3601"] {
        let error = silence(secs).unwrap_err().to_string();
        assert!(
            error.contains("--api-silence") && error.contains("60..=3600"),
            "{error}"
        );
    }
}

#[test]
fn sizes_have_the_flags_that_the_maps_name() {
    let command = Args::command();
    let run = command.find_subcommand("run").unwrap();
    let longs: Vec<String> = run
        .get_arguments()
        .filter_map(|a| a.get_long().map(|l| format!("--{l}")))
        .collect();
    for map in datapath_common::maps::ALL {
        if let Some(flag) = crate::kernel::capacity::flag(map.name) {
            assert!(longs.iter().any(|l| l == flag), "{flag} of {}", map.name);
        }
    }
}

#[test]
fn bad_values_are_refused_by_name() {
    let cases: [&[&str]; 19] = [
        &["--snat-ports", "9-8"],
        &["--node-port-addresses", "192.0.2.1"],
        &["--masquerade-exclude", "10.0.0.0/8,all"],
        &["--service-cidr", "10.96.0.1"],
        &["--service-cidr", "0.0.0.0/0"],
        &["--masquerade", "perhaps"],
        &["--vni", "0"],
        &["--vni", "16777216"],
        &["--vxlan-port", "0"],
        &["--mtu", "100"],
        &["--xdp", "fast"],
        &["--max-flows", "0"],
        &["--max-backends", "67108865"],
        &["--uplink", "192.0.2.1"],
        &["--event-bytes", "5000"],
        &["--gc-interval", "0"],
        &["--api-servers", "192.0.2.1"],
        &["--min-sync-period", "5"],
        &["--sync-period", "often"],
    ];
    for case in cases {
        let error = run(case).unwrap_err();
        assert!(error.to_string().contains(case[0]), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    let node = Args::try_parse_from(["tulle-agent", "run", "--state", "/s", "--node", "Node_1"]);
    assert!(node.unwrap_err().to_string().contains("lower-case"));
    let both = run(&["--kubeconfig", "/k"]).unwrap_err();
    assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
}

#[test]
fn limits_count_in_ticks() {
    assert_eq!(per_tick(0), 0);
    assert_eq!(per_tick(1), 1);
    assert_eq!(per_tick(1000), 1073);
    assert_eq!(per_tick(u32::MAX), u32::MAX);
}
