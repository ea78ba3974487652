//! Tells the loop who reaches the API server: what it shows as a fault.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::contact::Contact;
use super::request::Trouble;
use crate::model::Kind;

/// The contact, and the loop's ear.
#[derive(Debug)]
pub struct Tidings {
    contact: Mutex<Contact>,
    tell: watch::Sender<Vec<String>>,
}

impl Tidings {
    /// Nothing is wrong yet.
    pub fn new() -> (Self, watch::Receiver<Vec<String>>) {
        let (tell, ear) = watch::channel(Vec::new());
        let contact = Mutex::default();
        (Self { contact, tell }, ear)
    }

    /// A kind is not followed.
    pub fn failed(&self, kind: Kind, trouble: &Trouble) {
        self.change(|contact| contact.failed(kind, &sentence(trouble)));
    }

    /// A kind is followed.
    pub fn works(&self, kind: Kind) {
        self.change(|contact| contact.works(kind));
    }

    fn change(&self, make: impl FnOnce(&mut Contact) -> bool) {
        let mut contact = self.contact.lock().unwrap_or_else(PoisonError::into_inner);
        if make(&mut contact) {
            self.tell.send_replace(contact.sentences());
        }
    }
}

/// The trouble and its mend.
fn sentence(trouble: &Trouble) -> String {
    let mend = match trouble.code().map(|code| code.as_u16()) {
        Some(401) => "; check the token or certificate that the agent shows",
        Some(403) => "; give the agent's account the ClusterRole of deploy/tulle.yaml",
        _ => "",
    };
    format!("{trouble}{mend}")
}
