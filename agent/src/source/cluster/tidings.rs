//! Tells the loop who reaches the API server: what it shows as a fault.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::contact::{Contact, Loss};
use super::request::Trouble;
use crate::model::Kind;

/// Kinds lose and find the server one after the other: until they have, nothing is told.
const SETTLE: Duration = Duration::from_secs(1);

/// The contact, and who tells of it.
#[derive(Debug)]
pub struct Tidings {
    contact: Mutex<Contact>,
    changed: watch::Sender<Vec<String>>,
}

impl Tidings {
    /// Nothing is wrong yet.
    pub fn new() -> Self {
        Self {
            contact: Mutex::default(),
            changed: watch::Sender::default(),
        }
    }

    /// A kind is not followed.
    pub fn failed(&self, kind: Kind, trouble: &Trouble) {
        self.change(|contact| contact.failed(kind, loss(trouble)));
    }

    /// A kind is followed.
    pub fn works(&self, kind: Kind) {
        self.change(|contact| contact.works(kind));
    }

    fn change(&self, make: impl FnOnce(&mut Contact)) {
        let mut contact = self.contact.lock().unwrap_or_else(PoisonError::into_inner);
        make(&mut contact);
        let said = contact.sentences();
        self.changed.send_if_modified(|before| {
            let news = *before != said;
            *before = said;
            news
        });
    }

    /// Tells what is wrong, once it has settled.
    pub async fn tell(&self, ear: watch::Sender<Vec<String>>) {
        let mut changed = self.changed.subscribe();
        while changed.changed().await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            let said = changed.borrow_and_update().clone();
            ear.send_if_modified(|told| {
                let news = *told != said;
                *told = said;
                news
            });
        }
    }
}

/// The trouble and its mend.
fn loss(trouble: &Trouble) -> Loss {
    match trouble.code().map(|code| code.as_u16()) {
        None => Loss::Contact(trouble.to_string()),
        Some(401) => Loss::All(format!(
            "{trouble}; check the token or certificate that the agent shows"
        )),
        Some(403) => Loss::Kind(format!(
            "{trouble}; give the agent's account the ClusterRole that Tulle is installed with"
        )),
        Some(_) => Loss::All(trouble.to_string()),
    }
}
