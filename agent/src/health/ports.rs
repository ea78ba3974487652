//! The loop's side: what it knows goes into the book, and what differs is published.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::board::Beat;
use super::book::Book;
use super::server::Server;
use crate::model::{Model, NamespacedName};

/// What the loop knows now.
#[derive(Debug)]
pub struct News<'a> {
    /// The cluster's state.
    pub model: &'a Model,
    /// Services that may be different from the last time.
    pub touched: BTreeSet<NamespacedName>,
    /// Services of which a part cannot be written.
    pub failing: BTreeSet<NamespacedName>,
    /// Whether the programs serve clients outside.
    pub serves: bool,
    /// Where to listen.
    pub addresses: Vec<IpAddr>,
}

/// The health check node ports of one agent.
#[derive(Debug)]
pub struct Ports {
    book: Book,
    /// None where clients outside are not served: another proxy may be there.
    server: Option<Server>,
}

impl Ports {
    /// For the node of this name; no port is open before the first news. `beat` tells that the
    /// loop goes round: one that stays busy for long does not serve any more.
    ///
    /// # Errors
    ///
    /// There can be no thread that answers.
    pub fn start(node: &str, serves_outside: bool, beat: &Arc<Beat>) -> io::Result<Self> {
        Ok(Self {
            book: Book::new(node),
            server: serves_outside
                .then(|| Server::start(Arc::clone(beat)))
                .transpose()?,
        })
    }

    /// Takes in what is known now.
    pub fn take(&mut self, news: News<'_>, now: Instant) {
        let Some(server) = &self.server else { return };
        let book = &mut self.book;
        let changed = [
            book.set_failing(news.failing, now),
            book.look(news.model, &news.touched),
            book.set_serving(news.serves, now),
            book.set_addresses(&news.addresses),
        ];
        if changed.contains(&true) {
            server.publish(book.board());
        }
    }

    /// What cannot be opened, a sentence each, whenever that changes.
    pub async fn failed(&mut self) -> Vec<String> {
        match &mut self.server {
            Some(server) => server.failed().await,
            None => pending().await,
        }
    }
}
