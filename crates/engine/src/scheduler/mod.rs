//! A scheduler: many answers at once over one engine, with a thread that steps them together.
//!
//! Continuous batching on top of [`Engine::step`]'s halves: each step of the graph runs one row of every
//! answer that can go on; answers join and leave between steps.
//!
//! - **Admission** is first come, first served, by the exact peak: the head of the queue waits until the
//!   cache of its whole answer can be promised, and nobody overtakes it. What could never fit is refused
//!   when it is submitted.
//! - **Prompts** are run in chunks beside the rows that generate, `step_tokens` tokens in a step.
//! - **Compressions** run on a second thread. The sequence rejoins when its own is done; no other waits.
//! - **Events** wait in a bounded queue for each answer. When it is full, its answer alone waits.
//! - **Errors** end the answer that they belong to. When a step of several rows fails, each runs alone.
//!
//! What an answer says depends on none of this: it is the text that its sequence writes alone.

mod eventfd;
mod figures;
mod inbox;
mod mail;
mod rounds;
#[cfg(all(test, feature = "shuttle"))]
mod shuttle;
mod sync;
mod task;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

pub use figures::SchedulerMetrics;
pub use inbox::Next;

use figures::Figures;
use inbox::Inbox;
use mail::{Doorbell, Mail};
use rounds::{Job, JobMail, Rounds, compress_jobs};
use sync::{Mutex, lock, mpsc, thread};
use task::EngineTask;

use crate::cache::Watcher;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::sequence::Sequence;

/// Options of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// The most rows of a step, and of admitted answers that do not wait for their readers.
    pub max_rows: usize,
    /// The most tokens of a step in which rows generate: they take one each, prompts the rest, and one at
    /// least. A step of prompts alone takes up to the engine's `prefill_chunk`, if that is more.
    pub step_tokens: usize,
    /// Events of one answer that may wait to be read, beside the last one.
    pub queue_events: usize,
    /// Answers that may wait to be admitted.
    pub max_waiting: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            max_rows: 32,
            step_tokens: 64,
            queue_events: 64,
            max_waiting: 1024,
        }
    }
}

impl SchedulerOptions {
    const MOST: usize = 1 << 16;

    fn check(&self) -> Result<()> {
        for (name, value) in [
            ("max rows", self.max_rows),
            ("step tokens", self.step_tokens),
            ("queue events", self.queue_events),
            ("max waiting", self.max_waiting),
        ] {
            if value == 0 || value > Self::MOST {
                return Err(Error::InvalidArgument(format!(
                    "{name}: expected 1 to {}, found {value}",
                    Self::MOST
                )));
            }
        }
        Ok(())
    }
}

/// Runs many answers of one engine at once, on two threads of its own, which sleep when there is nothing
/// to do. May be used from any thread.
///
/// Dropping it is [`shut_down`](Self::shut_down).
pub struct Scheduler {
    engine: Engine,
    options: SchedulerOptions,
    mail: Arc<JobMail<EngineTask>>,
    doorbell: Arc<Doorbell>,
    figures: Arc<Figures>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    /// Rings when blocks of the pool were given back. The pool holds it weakly.
    _watcher: Arc<Watcher>,
}

/// A request that was refused, with its sequence, which is as it was.
pub struct Refused {
    /// Why.
    pub error: Error,
    /// The sequence.
    pub sequence: Box<Sequence>,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl Scheduler {
    /// Starts a scheduler. Sequences may be stepped beside it; their steps and its own take turns.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an option, [`Error::Runtime`] if there can be no thread.
    pub fn new(engine: &Engine, options: SchedulerOptions) -> Result<Self> {
        options.check()?;
        let doorbell = Arc::new(Doorbell::default());
        let mail: Arc<JobMail<EngineTask>> = Arc::new(Mail::new(Arc::clone(&doorbell)));
        let figures = Arc::new(Figures::default());
        let watcher: Arc<Watcher> = {
            let doorbell = Arc::clone(&doorbell);
            Arc::new(move || doorbell.ring())
        };
        engine.shared.pool.watch(Arc::downgrade(&watcher));

        let (compressor, jobs) = mpsc::channel();
        let rounds = Rounds::new(
            options,
            engine.shared.prefill_chunk,
            Arc::clone(&mail),
            Arc::clone(&doorbell),
            Arc::clone(&figures),
            compressor,
        );
        let scheduler = Self {
            engine: engine.clone(),
            options,
            mail: Arc::clone(&mail),
            doorbell,
            figures,
            threads: Mutex::new(Vec::new()),
            _watcher: watcher,
        };
        scheduler.spawn("rrpc-scheduler", move || rounds.run())?;
        scheduler.spawn("rrpc-compress", move || compress_jobs(&jobs, &mail))?;
        Ok(scheduler)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(work);
        let thread = thread.map_err(|error| Error::Runtime(format!("no thread for a scheduler: {error}")))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Has an answer to `sequence` written. It waits until the cache of the whole answer can be promised,
    /// behind those that came before; then it is written as [`Sequence::generate`] would.
    ///
    /// The sequence is the scheduler's until the answer has ended: [`ScheduledAnswer::take_sequence`].
    /// While it waits it keeps the cache that it has. So does every sequence beside the scheduler: what is
    /// not needed any more is dropped, or others wait for it.
    ///
    /// # Errors
    /// As [`Sequence::generate`], but [`Error::Budget`] only if the cache of the answer is larger than the
    /// whole budget; [`Error::InvalidArgument`] for a sequence of another engine, or a scheduler that was
    /// shut down; [`Error::Busy`] if `max_waiting` answers wait.
    pub fn submit(
        &self,
        sequence: Sequence,
        options: &GenerateOptions,
    ) -> std::result::Result<ScheduledAnswer, Refused> {
        let refused = |error: Error, sequence: Sequence| {
            log::warn!("a request was refused: {error}");
            let sequence = Box::new(sequence);
            Err(Refused { error, sequence })
        };
        if !Arc::ptr_eq(&sequence.shared, &self.engine.shared) {
            let text = "scheduler: expected a sequence of its engine, found one of another";
            return refused(Error::InvalidArgument(text.into()), sequence);
        }
        let task = match EngineTask::new(sequence, options) {
            Ok(task) => task,
            Err((error, sequence)) => return refused(error, sequence),
        };
        if !self.figures.enter_queue(self.options.max_waiting) {
            let most = self.options.max_waiting;
            let text = format!("scheduler: expected at most {most} answers that wait, found as many");
            return refused(Error::Busy(text), task.into_sequence());
        }
        let inbox = Arc::new(Inbox::new(self.options.queue_events, Arc::clone(&self.doorbell)));
        let arrival = self.figures.submitted();
        match self.mail.bring(Job::new(task, Arc::clone(&inbox), arrival)) {
            Ok(()) => Ok(ScheduledAnswer { inbox }),
            Err(job) => {
                self.figures.leave_queue();
                let text = "scheduler: expected one at work, found one that was shut down";
                refused(
                    Error::InvalidArgument(text.into()),
                    job.into_task().into_sequence(),
                )
            }
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Figures since it was made.
    pub fn metrics(&self) -> SchedulerMetrics {
        self.figures.read()
    }

    /// Cancels all answers, those that wait included, and waits until the threads have ended: for a step and
    /// the compressions under way. Events that were not read can still be.
    pub fn shut_down(&self) {
        self.mail.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // One of them may be here, in a logger of the program's.
            if thread.thread().id() != thread::current().id() {
                // A panic has ended its answers with an error.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// An answer that a scheduler writes. May be used from any thread; events go to whoever asks first.
///
/// Dropping it cancels the answer and frees its sequence, if that was not taken.
pub struct ScheduledAnswer {
    inbox: Arc<Inbox<Sequence>>,
}

impl ScheduledAnswer {
    /// The next event; waits for it up to `timeout`, or as long as it takes. Its text is put into `text`.
    ///
    /// # Errors
    /// Why the answer has failed, after the events before that; then again and again.
    pub fn next<'a>(&self, text: &'a mut String, timeout: Option<Duration>) -> Result<Next<'a>> {
        self.inbox.next(text, timeout)
    }

    /// As [`next`](Self::next), without waiting.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next<'a>(&self, text: &'a mut String) -> Result<Next<'a>> {
        self.next(text, Some(Duration::ZERO))
    }

    /// Ends the answer before its next token. The events up to then can still be read.
    pub fn cancel(&self) {
        self.inbox.cancel();
    }

    /// A file descriptor (an eventfd) for poll and epoll: it is readable while [`try_next`](Self::try_next)
    /// has an event or an error to tell that was not told. It is opened by the first call and closed with
    /// this answer. It must not be read, written or closed.
    ///
    /// # Errors
    /// [`Error::File`] if the process can open no more.
    pub fn event_fd(&self) -> Result<RawFd> {
        self.inbox.event_fd()
    }

    /// Whether the answer has ended, read or not: [`take_sequence`](Self::take_sequence) has its sequence.
    pub fn has_ended(&self) -> bool {
        self.inbox.is_complete()
    }

    /// The sequence, once: when [`Event::End`](crate::Event::End) or the error has been told, it is there.
    pub fn take_sequence(&self) -> Option<Sequence> {
        self.inbox.take()
    }

    /// Cancels the answer, if it has not ended, waits for its end, and takes the sequence.
    pub fn into_sequence(self) -> Option<Sequence> {
        self.cancel();
        self.inbox.wait_complete();
        self.take_sequence()
    }

    /// Says that nobody will take the sequence: it is freed, and its cache with it, as soon as the answer has
    /// ended, read or not.
    pub fn free_sequence(&self) {
        drop(self.inbox.renounce());
    }
}

impl Drop for ScheduledAnswer {
    fn drop(&mut self) {
        self.cancel();
        self.free_sequence();
    }
}
