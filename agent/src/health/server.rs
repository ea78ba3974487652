//! The thread that owns the sockets: slow or many clients hold no change up.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use super::board::{Beat, Board};
use super::clients::{Clients, MOST};
use super::listeners::Listeners;

/// Until a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at the board for ports; answers are always from the last one.
const GAP: Duration = Duration::from_millis(10);
/// Open files that are left for everything else: pods' links above all.
const RESERVED: usize = 256;

/// The loop's end of it. The sockets go with it.
#[derive(Debug)]
pub struct Server {
    boards: watch::Sender<Arc<Board>>,
    failed: Option<watch::Receiver<Vec<String>>>,
}

impl Server {
    /// Starts the thread, without any port. `beat` tells that the loop goes round.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub fn start(beat: Arc<Beat>) -> io::Result<Self> {
        let (boards, published) = watch::channel(Arc::default());
        let (tell, failed) = watch::channel(Vec::new());
        let clients = Arc::new(Clients::new(published.clone(), beat));
        let most = open_files().saturating_sub(RESERVED + MOST);
        let listeners = Listeners::new(clients, most);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("health ports".to_owned())
            .spawn(move || runtime.block_on(serve(listeners, published, tell)))?;
        Ok(Self {
            boards,
            failed: Some(failed),
        })
    }

    /// Answers from this from now on.
    pub fn publish(&self, board: &Board) {
        self.boards.send_replace(Arc::new(board.clone()));
    }

    /// What cannot be opened, a sentence each, whenever that changes.
    pub async fn failed(&mut self) -> Vec<String> {
        let Some(failed) = &mut self.failed else {
            return pending().await;
        };
        if failed.changed().await.is_ok() {
            return failed.borrow_and_update().clone();
        }
        self.failed = None;
        vec!["the thread that answers has ended; start the agent again".to_owned()]
    }
}

async fn serve(
    mut listeners: Listeners,
    mut boards: watch::Receiver<Arc<Board>>,
    tell: watch::Sender<Vec<String>>,
) {
    loop {
        let board = Arc::clone(&boards.borrow_and_update());
        let failed = listeners.follow(&board).await;
        let again = !failed.is_empty();
        tell.send_if_modified(|told| {
            let news = *told != failed;
            *told = failed;
            news
        });
        tokio::time::sleep(GAP).await;
        tokio::select! {
            changed = boards.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(AGAIN), if again => {}
        }
    }
}

/// How many files this process may have open: as many as it may allow itself,
/// for each port takes one in each family.
fn open_files() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match limit {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!("cannot raise the limit of open files: {error}");
            1024
        }
    }
}
