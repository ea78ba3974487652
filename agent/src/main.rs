//! The node agent's command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use tulle_agent::args::{Args, ConfigVerb, TakenFrom, Verb};
use tulle_agent::{clean, config, run, takeover};

fn main() -> ExitCode {
    let done = match Args::read().verb {
        Verb::Run(args) => run::run(*args),
        Verb::Cleanup(args) => clean::run(&args),
        Verb::Takeover(TakenFrom::KubeProxy(args)) => takeover::run(&args),
        Verb::Config(verb) => match *verb {
            ConfigVerb::Show(args) => config::show::show(&args),
            ConfigVerb::Schema => config::show::schema(),
        },
        Verb::Version => {
            println!("tulle-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
