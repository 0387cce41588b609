//! What reaches the scheduler's thread.

use std::sync::Arc;

use super::sync::{Condvar, Mutex, lock};

/// Wakes the scheduler's thread. Whoever changes what the thread looks at rings afterwards; the thread
/// silences the doorbell before it looks, so that it sleeps through nothing. Nothing is locked while the
/// doorbell is.
#[derive(Default)]
pub(super) struct Doorbell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Doorbell {
    pub(super) fn ring(&self) {
        *lock(&self.rung) = true;
        self.heard.notify_one();
    }

    pub(super) fn silence(&self) {
        *lock(&self.rung) = false;
    }

    /// Sleeps until it is rung, or was since it was silenced.
    pub(super) fn wait(&self) {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = self.heard.wait(rung).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// Letters of two kinds, `New` and `Back`, until it is closed.
pub(super) struct Mail<New, Back> {
    state: Mutex<Letters<New, Back>>,
    doorbell: Arc<Doorbell>,
}

pub(super) struct Letters<New, Back> {
    pub(super) new: Vec<New>,
    pub(super) back: Vec<Back>,
    pub(super) closed: bool,
}

impl<New, Back> Mail<New, Back> {
    pub(super) fn new(doorbell: Arc<Doorbell>) -> Self {
        Self {
            state: Mutex::new(Letters {
                new: Vec::new(),
                back: Vec::new(),
                closed: false,
            }),
            doorbell,
        }
    }

    /// Brings something new, unless it is closed: then it is returned.
    pub(super) fn bring(&self, new: New) -> Result<(), New> {
        {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(new);
            }
            state.new.push(new);
        }
        self.doorbell.ring();
        Ok(())
    }

    /// Brings something back: always possible.
    pub(super) fn bring_back(&self, back: Back) {
        lock(&self.state).back.push(back);
        self.doorbell.ring();
    }

    /// Lets nothing new in.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.doorbell.ring();
    }

    /// All letters.
    pub(super) fn take(&self) -> Letters<New, Back> {
        let mut state = lock(&self.state);
        Letters {
            new: std::mem::take(&mut state.new),
            back: std::mem::take(&mut state.back),
            closed: state.closed,
        }
    }
}
