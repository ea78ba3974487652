//! Whether an agent could serve by other arguments, as far as that can be asked beforehand.

use std::fs::{self, File};

use anyhow::{Context, ensure};

use super::logging;
use crate::args::RunArgs;
use crate::kernel::probe::{self, Sources};
use crate::net::{Netlink, Uplink};

/// Asks what a start asks before it touches anything.
///
/// # Errors
///
/// The start would fail, and why.
pub async fn check(args: &RunArgs) -> anyhow::Result<()> {
    logging::check(&args.log)?;
    probe::probe(&Sources::default(), &args.places.bpffs)?;
    if let Some(state) = &args.cluster.state {
        let entries =
            fs::metadata(state).with_context(|| format!("--state {}", state.display()))?;
        ensure!(
            entries.is_dir(),
            "--state {} is no directory",
            state.display()
        );
    }
    if let Some(path) = &args.cluster.kubeconfig {
        File::open(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
    }
    Uplink::find(&Netlink::open()?, args.uplink.as_deref()).await?;
    Ok(())
}
