//! The scheduler's thread: rounds of looking, admitting, stepping and telling. It knows answers as
//! [`Task`]s: those of the engine are in `task`, shuttle's tests have others.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::SchedulerOptions;
use super::figures::Figures;
use super::inbox::Inbox;
use super::mail::{Doorbell, Mail};
use super::sync::mpsc;
use crate::error::{Error, Result, panic_text};

/// An answer, as the rounds see it.
pub(super) trait Task: Send + Sized + 'static {
    /// What the one who asked gets back.
    type Rest: Send;
    /// What steps keep from one to the next, for its memory.
    type Lists: Default + Send;

    /// Promises the cache of the whole answer; false if it does not fit now.
    fn admit(&mut self) -> Result<bool>;

    /// Why it does not fit.
    fn refusal(&mut self) -> Error;

    /// Whether waiting tasks can only wait for each other: all that anyone holds is theirs.
    fn hold_everything<'a>(waiting: impl Iterator<Item = &'a Self>) -> bool;

    /// Given tokens to run; 0 if generated ones are next.
    fn given(&self) -> usize;

    /// Runs a step; each task takes at most as many tokens as its limit says. On an error nothing has
    /// advanced.
    fn step(tasks: &mut [&mut Self], limits: &[usize], lists: &mut Self::Lists) -> Result<()>;

    /// Whether it has to be compressed before it goes on.
    fn is_due(&self) -> bool;

    /// Compresses it. May run in another thread than the steps.
    fn compress(&mut self) -> Result<()>;

    /// Tells all events that need no step; whether the last one was among them.
    fn tell(&mut self, inbox: &Inbox<Self::Rest>) -> Result<bool>;

    /// The next event will be the last.
    fn cancel(&mut self);

    /// It has failed, and will be given back.
    fn spoil(&mut self, error: &Error);

    /// What is given back.
    fn into_rest(self) -> Self::Rest;
}

/// A task with its reader's inbox.
pub(super) struct Job<T: Task> {
    task: T,
    inbox: Sender<T::Rest>,
    arrival: u64,
    submitted: Instant,
    /// The round of its last step.
    last_step: u64,
}

impl<T: Task> Job<T> {
    pub(super) fn new(task: T, inbox: Arc<Inbox<T::Rest>>, arrival: u64) -> Self {
        Self {
            task,
            inbox: Sender(Some(inbox)),
            arrival,
            submitted: Instant::now(),
            last_step: 0,
        }
    }

    /// The task, for one whose inbox nobody reads.
    pub(super) fn into_task(self) -> T {
        self.task
    }

    /// Ends the answer, whose last event was told, or which failed.
    fn end(self, failure: Option<Error>) {
        let Self {
            mut task, mut inbox, ..
        } = self;
        if let Some(error) = &failure {
            task.spoil(error);
        }
        let Some(inbox) = inbox.0.take() else { return };
        let unwanted = inbox.complete(failure, Some(task.into_rest()));
        drop(unwanted);
    }

    fn inbox(&self) -> Option<&Inbox<T::Rest>> {
        self.inbox.0.as_deref()
    }

    fn has_room(&self) -> bool {
        self.inbox().is_none_or(Inbox::has_room)
    }

    fn is_cancelled(&self) -> bool {
        self.inbox().is_some_and(Inbox::is_cancelled)
    }

    /// As [`Task::tell`]; a panic is an error.
    fn tell(&mut self) -> Result<bool> {
        let Self { task, inbox, .. } = self;
        match &inbox.0 {
            Some(inbox) => caught(|| task.tell(inbox)),
            None => Ok(true),
        }
    }
}

/// The scheduler's end of an inbox. One that is dropped tells the reader that nothing more comes.
struct Sender<S>(Option<Arc<Inbox<S>>>);

impl<S> Drop for Sender<S> {
    fn drop(&mut self) {
        if let Some(inbox) = self.0.take() {
            let lost = Error::Internal("the scheduler's thread ended before the answer".into());
            inbox.complete(Some(lost), None);
        }
    }
}

/// A panic becomes an error.
fn caught<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))))
}

/// New jobs, and jobs that were compressed.
pub(super) type JobMail<T> = Mail<Job<T>, (Job<T>, Result<()>)>;

/// The other thread: compresses jobs until there will be no more of them.
pub(super) fn compress_jobs<T: Task>(jobs: &mpsc::Receiver<Job<T>>, mail: &JobMail<T>) {
    while let Ok(mut job) = jobs.recv() {
        let result = caught(|| job.task.compress());
        mail.bring_back((job, result));
    }
    // If the scheduler's thread was lost, so are these.
    drop(mail.take());
}

/// What the thread has.
pub(super) struct Rounds<T: Task> {
    options: SchedulerOptions,
    /// The most given tokens that a row takes in a step.
    prefill_chunk: usize,
    mail: Arc<JobMail<T>>,
    doorbell: Arc<Doorbell>,
    figures: Arc<Figures>,
    /// In order of arrival.
    waiting: VecDeque<Job<T>>,
    /// Admitted, in order of arrival.
    running: Vec<Job<T>>,
    /// Admitted, and with the other thread.
    compressing: usize,
    compressor: mpsc::Sender<Job<T>>,
    round: u64,
    /// Places in `running` of a step's rows, and the tokens that each may take; kept for their memory.
    rows: Vec<usize>,
    limits: Vec<usize>,
    /// Empty between steps, as [`emptied`] leaves it.
    tasks: Vec<&'static mut T>,
    lists: T::Lists,
}

/// An empty list in another's memory, whatever that one borrowed.
pub(super) fn emptied<'a, T>(mut list: Vec<&mut T>) -> Vec<&'a mut T> {
    list.clear();
    // Collected where it lies: the allocations of a step are counted by a test.
    list.into_iter().map_while(|_| None).collect()
}

/// Lets nothing new in when the thread ends, however it does.
struct CloseAtEnd<T: Task>(Arc<JobMail<T>>);

impl<T: Task> Drop for CloseAtEnd<T> {
    fn drop(&mut self) {
        self.0.close();
        drop(self.0.take());
    }
}

impl<T: Task> Rounds<T> {
    pub(super) fn new(
        options: SchedulerOptions,
        prefill_chunk: usize,
        mail: Arc<JobMail<T>>,
        doorbell: Arc<Doorbell>,
        figures: Arc<Figures>,
        compressor: mpsc::Sender<Job<T>>,
    ) -> Self {
        Self {
            options,
            prefill_chunk,
            mail,
            doorbell,
            figures,
            waiting: VecDeque::new(),
            running: Vec::new(),
            compressing: 0,
            compressor,
            round: 0,
            rows: Vec::new(),
            limits: Vec::new(),
            tasks: Vec::new(),
            lists: T::Lists::default(),
        }
    }

    /// Runs until the mail is closed; then ends all answers before their next tokens.
    pub(super) fn run(mut self) {
        let _close = CloseAtEnd(Arc::clone(&self.mail));
        loop {
            self.doorbell.silence();
            let closed = self.read_mail();
            if closed {
                break;
            }
            self.end_cancelled(false);
            self.admit();
            self.choose_rows();
            self.show_figures();
            match self.rows.is_empty() {
                true => self.doorbell.wait(),
                false => self.step(),
            }
        }
        self.end_cancelled(true);
        while self.compressing > 0 {
            self.doorbell.wait();
            self.doorbell.silence();
            self.read_mail();
            self.end_cancelled(true);
        }
        self.show_figures();
    }

    /// Whether the mail is closed.
    fn read_mail(&mut self) -> bool {
        let letters = self.mail.take();
        self.waiting.extend(letters.new);
        for (job, result) in letters.back {
            self.compressing -= 1;
            match result {
                Ok(()) => self.go_on(job),
                Err(error) => self.end(job, Some(error)),
            }
        }
        letters.closed
    }

    /// Ends those that were cancelled, or all, before their next tokens.
    fn end_cancelled(&mut self, all: bool) {
        let mut at = 0;
        while at < self.waiting.len() {
            match all || self.waiting[at].is_cancelled() {
                true => {
                    if let Some(job) = self.waiting.remove(at) {
                        self.figures.leave_queue();
                        self.cancel(job);
                    }
                }
                false => at += 1,
            }
        }
        let mut at = 0;
        while at < self.running.len() {
            match all || self.running[at].is_cancelled() {
                true => {
                    let job = self.running.remove(at);
                    self.cancel(job);
                }
                false => at += 1,
            }
        }
    }

    fn cancel(&mut self, mut job: Job<T>) {
        job.task.cancel();
        match job.tell() {
            Ok(_) => {
                self.figures.cancelled();
                job.end(None);
            }
            Err(error) => self.end(job, Some(error)),
        }
    }

    fn end(&self, job: Job<T>, failure: Option<Error>) {
        match &failure {
            None => self.figures.completed(),
            Some(error) => {
                log::error!("an answer failed: {error}");
                self.figures.failed();
            }
        }
        job.end(failure);
    }

    /// First come, first served: the head of the queue is admitted as soon as its whole cache can be
    /// promised and there is a row for it, and nobody behind it before that. Blocks that one behind it
    /// took could be the ones that it waits for, for as long as that one's reader pleases.
    fn admit(&mut self) {
        loop {
            let active = self.running.iter().filter(|job| job.has_room()).count() + self.compressing;
            if active >= self.options.max_rows {
                return;
            }
            if self.waiting.is_empty() {
                return;
            }
            let admitted = self.admit_head();
            let admitted = match admitted {
                Ok(false) if !self.is_stuck() => return,
                // The last that others had may have come back just now.
                Ok(false) => self.admit_head(),
                found => found,
            };
            let refused = match admitted {
                Ok(true) => None,
                Ok(false) => Some(None),
                Err(error) => Some(Some(error)),
            };
            let Some(mut job) = self.waiting.pop_front() else {
                return;
            };
            self.figures.leave_queue();
            match refused {
                None => {
                    self.figures.admitted(job.submitted.elapsed());
                    self.go_on(job);
                }
                Some(error) => {
                    let error = error.unwrap_or_else(|| job.task.refusal());
                    self.end(job, Some(error));
                }
            }
        }
    }

    fn admit_head(&mut self) -> Result<bool> {
        let head = self.waiting.front_mut();
        head.map_or(Ok(false), |head| caught(|| head.task.admit()))
    }

    /// Whether the head waits for blocks that only the ones behind it have, which wait for it.
    fn is_stuck(&self) -> bool {
        let waiting = self.waiting.iter().map(|job| &job.task);
        self.running.is_empty() && self.compressing == 0 && T::hold_everything(waiting)
    }

    /// After a step, a compression or the admission: to the compression that is due, or, when all is told
    /// that can be, to the next step or the end.
    fn go_on(&mut self, mut job: Job<T>) {
        if job.task.is_due() {
            self.compressing += 1;
            if let Err(mpsc::SendError(job)) = self.compressor.send(job) {
                self.compressing -= 1;
                self.end(
                    job,
                    Some(Error::Internal("the compressions' thread has ended".into())),
                );
            }
            return;
        }
        match job.tell() {
            Ok(false) => {
                let place = self.running.partition_point(|other| other.arrival < job.arrival);
                self.running.insert(place, job);
            }
            outcome => self.end(job, outcome.err()),
        }
    }

    /// The rows of the next step: all that have room for an event; of too many, those whose last step is
    /// longest ago. Rows that generate take a token each, prompts share what is left of `step_tokens`,
    /// oldest first. Without a row that generates, prompts take as many as the engine's own steps do.
    fn choose_rows(&mut self) {
        let Self { running, rows, .. } = self;
        rows.clear();
        rows.extend((0..running.len()).filter(|&at| running[at].has_room()));
        if rows.len() > self.options.max_rows {
            rows.sort_by_key(|&at| running[at].last_step);
            rows.truncate(self.options.max_rows);
            rows.sort_unstable();
        }
        let generating = rows.iter().filter(|&&at| running[at].task.given() == 0).count();
        let mut left = match generating {
            0 => self.prefill_chunk.max(self.options.step_tokens),
            // Never nothing, or prompts would starve.
            _ => self.options.step_tokens.saturating_sub(generating).max(1),
        };
        self.limits.clear();
        rows.retain(|&at| {
            let given = running[at].task.given();
            let limit = match given {
                0 => self.prefill_chunk,
                _ => self.prefill_chunk.min(left),
            };
            left -= limit.min(given);
            if limit > 0 {
                self.limits.push(limit);
            }
            limit > 0
        });
    }

    fn step(&mut self) {
        self.round += 1;
        self.figures.stepped(self.rows.len());
        let mut chosen = self.rows.iter().peekable();
        let mut tasks = emptied(std::mem::take(&mut self.tasks));
        for (at, job) in self.running.iter_mut().enumerate() {
            if chosen.next_if_eq(&&at).is_some() {
                job.last_step = self.round;
                tasks.push(&mut job.task);
            }
        }
        let mut failures = Vec::new();
        if let Err(error) = caught(|| T::step(&mut tasks, &self.limits, &mut self.lists)) {
            failures = match tasks.len() {
                1 => vec![Some(error)],
                // Which one it was shows when each runs alone.
                _ => tasks
                    .iter_mut()
                    .zip(&self.limits)
                    .map(|(task, &limit)| {
                        caught(|| T::step(&mut [&mut **task], &[limit], &mut self.lists)).err()
                    })
                    .collect(),
            };
        }
        self.tasks = emptied(tasks);
        // From behind, so that places stay what they are.
        for index in (0..self.rows.len()).rev() {
            let at = self.rows[index];
            let job = &mut self.running[at];
            let outcome = match failures.get_mut(index).and_then(Option::take) {
                Some(error) => Err(error),
                None if job.task.is_due() => {
                    let job = self.running.remove(at);
                    self.go_on(job);
                    continue;
                }
                None => job.tell(),
            };
            if outcome != Ok(false) {
                let job = self.running.remove(at);
                self.end(job, outcome.err());
            }
        }
    }

    fn show_figures(&self) {
        let paused = self.running.iter().filter(|job| !job.has_room()).count();
        self.figures
            .show(self.running.len() - paused, paused, self.compressing);
    }
}
