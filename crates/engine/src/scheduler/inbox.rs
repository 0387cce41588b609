//! The events of one answer, between the scheduler's thread and a reader: a queue with bounds.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::eventfd::EventFd;
use super::mail::Doorbell;
use super::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::error::{Error, Result};
use crate::generate::{Event, StopReason};

/// What a reader finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// The next event.
    Event(Event<'a>),
    /// None came in time.
    Pending,
    /// [`Event::End`] has been read: there are no more.
    Ended,
}

/// The queue. `S` is what the scheduler had for the answer's time, and gives back: the sequence.
pub(super) struct Inbox<S> {
    state: Mutex<State<S>>,
    /// An event, or the end.
    changed: Condvar,
    cancelled: AtomicBool,
    /// Events that may wait to be read; [`Event::End`] always may.
    capacity: usize,
    doorbell: Arc<Doorbell>,
}

struct State<S> {
    events: VecDeque<Queued>,
    /// The texts of `events`, one behind the other.
    text: VecDeque<u8>,
    failure: Option<Error>,
    /// The reader has seen `failure`.
    failure_told: bool,
    /// The scheduler has done with this answer.
    complete: bool,
    /// The scheduler waits for the reader.
    paused: bool,
    given_back: Option<S>,
    /// What is given back is to be dropped.
    unwanted: bool,
    eventfd: Option<EventFd>,
}

/// An [`Event`] with the length of its text.
#[derive(Clone, Copy)]
enum Queued {
    Prefill { done: usize, total: usize },
    Token { id: u32, end_of_text: bool, len: usize },
    End { reason: StopReason, len: usize },
}

impl<S> State<S> {
    /// What was given back is there when [`Event::End`] is read.
    fn has_event(&self) -> bool {
        match self.events.front() {
            Some(Queued::End { .. }) => self.complete,
            front => front.is_some(),
        }
    }

    fn is_readable(&self) -> bool {
        self.has_event() || (self.failure.is_some() && !self.failure_told && self.complete)
    }

    fn show(&mut self) {
        let readable = self.is_readable();
        if let Some(eventfd) = &mut self.eventfd {
            eventfd.put(readable);
        }
    }
}

impl<S> Inbox<S> {
    pub(super) fn new(capacity: usize, doorbell: Arc<Doorbell>) -> Self {
        Self {
            state: Mutex::new(State {
                events: VecDeque::with_capacity(capacity + 1),
                text: VecDeque::new(),
                failure: None,
                failure_told: false,
                complete: false,
                paused: false,
                given_back: None,
                unwanted: false,
                eventfd: None,
            }),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            capacity,
            doorbell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        lock(&self.state)
    }

    // The scheduler's side.

    /// Whether there is room for one more event. If not, the doorbell rings when there is.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.lock();
        state.paused = state.events.len() >= self.capacity;
        !state.paused
    }

    /// Puts an event behind the others. One that tells how far the prefill is takes the place of an older
    /// one that was not read.
    pub(super) fn push(&self, event: &Event<'_>) {
        let mut state = self.lock();
        let mut put = |text: &str| {
            state.text.extend(text.as_bytes());
            text.len()
        };
        let queued = match *event {
            Event::Prefill { done, total } => Queued::Prefill { done, total },
            Event::Token {
                id,
                text,
                end_of_text,
            } => Queued::Token {
                id,
                end_of_text,
                len: put(text),
            },
            Event::End { reason, text } => Queued::End {
                reason,
                len: put(text),
            },
        };
        if let (Queued::Prefill { .. }, Some(Queued::Prefill { .. })) = (queued, state.events.back()) {
            state.events.pop_back();
        }
        state.events.push_back(queued);
        state.show();
        self.changed.notify_all();
    }

    /// Ends the answer: with the [`Event::End`] that was pushed, or with an error. Returns what nobody
    /// wants back.
    pub(super) fn complete(&self, failure: Option<Error>, given_back: Option<S>) -> Option<S> {
        let mut state = self.lock();
        state.failure = failure;
        state.complete = true;
        let unwanted = match state.unwanted {
            true => given_back,
            false => {
                state.given_back = given_back;
                None
            }
        };
        state.show();
        self.changed.notify_all();
        unwanted
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    // The reader's side.

    /// The next event, its text put into `text`; waits up to `timeout`, or for ever.
    pub(super) fn next<'a>(&self, text: &'a mut String, timeout: Option<Duration>) -> Result<Next<'a>> {
        // A time that is too far off for the clock is never reached.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        while !state.has_event() && !state.complete {
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Pending);
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(|e| e.into_inner()).0;
        }
        let Some(queued) = state.events.pop_front() else {
            state.failure_told = true;
            state.show();
            return match &state.failure {
                Some(failure) => Err(failure.clone()),
                None => Ok(Next::Ended),
            };
        };
        let len = match queued {
            Queued::Prefill { .. } => 0,
            Queued::Token { len, .. } | Queued::End { len, .. } => len,
        };
        let mut bytes = std::mem::take(text).into_bytes();
        bytes.clear();
        bytes.extend(state.text.drain(..len));
        state.show();
        let resume = std::mem::take(&mut state.paused);
        drop(state);
        if resume {
            self.doorbell.ring();
        }
        *text = String::from_utf8(bytes)
            .map_err(|_| Error::Internal("the text of an event was cut inside a character".into()))?;
        Ok(Next::Event(match queued {
            Queued::Prefill { done, total } => Event::Prefill { done, total },
            Queued::Token { id, end_of_text, .. } => Event::Token {
                id,
                text,
                end_of_text,
            },
            Queued::End { reason, .. } => Event::End { reason, text },
        }))
    }

    /// Ends the answer before its next token.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.doorbell.ring();
    }

    /// A file descriptor that is readable while `next` has an event or an error to tell.
    pub(super) fn event_fd(&self) -> Result<RawFd> {
        let mut state = self.lock();
        if state.eventfd.is_none() {
            state.eventfd = Some(EventFd::new()?);
            state.show();
        }
        Ok(state.eventfd.as_ref().map_or(-1, EventFd::raw))
    }

    /// What the scheduler gave back, once.
    pub(super) fn take(&self) -> Option<S> {
        self.lock().given_back.take()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.lock().complete
    }

    /// Waits until the scheduler has done with the answer.
    pub(super) fn wait_complete(&self) {
        let mut state = self.lock();
        while !state.complete {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// What the scheduler gives back is dropped, and what it has given back is returned, to be dropped.
    pub(super) fn renounce(&self) -> Option<S> {
        let mut state = self.lock();
        state.unwanted = true;
        state.given_back.take()
    }
}
