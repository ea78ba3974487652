//! The first attachment on a node that another proxy served: its flows become Tulle's.

use super::serving::Serving;
use super::shared::Shared;
use crate::takeover::import::{Import, ImportError};

/// Attaches all programs the first time. Flows that the kernel translates for a former proxy
/// are taken over if no program of a former agent has them already.
pub async fn attach(serving: &mut Serving, shared: &mut Shared) {
    let import = begin(serving, shared).await.unwrap_or_else(|error| {
        tracing::error!("{error}; connections through that proxy break");
        None
    });
    serving.attached = true;
    serving.sync_links(shared, true);
    let Some(import) = import else {
        return;
    };
    let done = import
        .finish(&mut serving.datapath.maps, &shared.netlink)
        .await;
    serving.planner.flows_are_moved(&done.fronts);
    serving.plan(shared);
    tracing::info!(
        "took over {} flows from the kernel's connection tracking; {} of this node's own processes \
         go on through it, and {} of clients that Tulle does not meet",
        done.taken,
        done.own,
        done.passed
    );
    if done.unknown > 0 {
        tracing::warn!(
            "{} flows of a former proxy go to endpoints that no Service has any more, and break",
            done.unknown
        );
    }
    if let Some(sentence) = done.failures.sentence() {
        tracing::error!("some connections through a former proxy may break: {sentence}");
    }
}

/// Writes the rows of flows, and has their frontends ask for them.
async fn begin(serving: &mut Serving, shared: &mut Shared) -> Result<Option<Import>, ImportError> {
    // Where programs are attached the flows are theirs; what cannot be told counts as attached.
    if serving
        .datapath
        .attached()
        .map_or(true, |at| !at.is_empty())
    {
        return Ok(None);
    }
    let config = serving.datapath.effective();
    let import = Import::begin(&mut serving.datapath.maps, &config, &shared.netlink).await?;
    if let Some(import) = &import {
        serving.planner.flows_are_moved(&import.done().fronts);
        serving.plan(shared);
    }
    Ok(import)
}
