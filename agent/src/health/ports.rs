//! The loop's side: what it knows goes into the book, and what differs is published.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

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
    /// For the node of this name; no port is open before the first news.
    ///
    /// # Errors
    ///
    /// There can be no thread that answers.
    pub fn start(node: &str, serves_outside: bool) -> io::Result<Self> {
        Ok(Self {
            book: Book::new(node),
            server: serves_outside.then(Server::start).transpose()?,
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

    /// The loop has something to do, or is done: one that stays busy for long
    /// does not serve any more.
    pub fn set_busy(&self, busy: bool) {
        match &self.server {
            Some(server) if busy => server.beat.begin(),
            Some(server) => server.beat.end(),
            None => {}
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
