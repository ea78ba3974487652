//! `tulle`: look into the datapath of this node.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tulle_cli::main()
}
