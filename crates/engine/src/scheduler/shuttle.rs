//! The scheduler's threads under shuttle: readers, cancellers and rounds in every order that a random
//! scheduler finds. `make test-shuttle`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::shuttle::rand::{self, RngCore as _};
use ::shuttle::scheduler::RandomScheduler;
use ::shuttle::{Config, Runner};
use reasoning_rpc_test_support::{Random, seed};

use super::figures::Figures;
use super::inbox::{Inbox, Next};
use super::mail::{Doorbell, Mail};
use super::rounds::{Job, JobMail, Rounds, Task, compress_jobs};
use super::sync::{Mutex, lock, mpsc, thread};
use super::{SchedulerMetrics, SchedulerOptions};
use crate::error::{Error, Result};
use crate::generate::{Event, StopReason};

/// A budget, and whom to tell of what comes back.
struct Budget {
    free: Mutex<usize>,
    all: usize,
    doorbell: Arc<Doorbell>,
}

/// What an answer holds of it; it comes back when this is dropped.
struct Held {
    budget: Arc<Budget>,
    blocks: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        *lock(&self.budget.free) += self.blocks;
        self.budget.doorbell.ring();
    }
}

/// Counts to `tokens`.
struct Counter {
    held: Held,
    peak: usize,
    tokens: usize,
    written: usize,
    told: usize,
    due: bool,
    cancelled: bool,
}

impl Task for Counter {
    type Rest = Held;
    type Lists = ();

    fn admit(&mut self) -> Result<bool> {
        let mut free = lock(&self.held.budget.free);
        let fits = *free >= self.peak;
        if fits {
            *free -= self.peak;
            self.held.blocks = self.peak;
        }
        Ok(fits)
    }

    fn refusal(&mut self) -> Error {
        Error::Internal("none has a peak that is above the budget".into())
    }

    fn hold_everything<'a>(waiting: impl Iterator<Item = &'a Self>) -> bool {
        let (mut held, mut budget) = (0, None);
        for task in waiting {
            held += task.held.blocks;
            budget = Some(&task.held.budget);
        }
        budget.is_some_and(|budget| *lock(&budget.free) + held == budget.all)
    }

    fn given(&self) -> usize {
        0
    }

    fn step(tasks: &mut [&mut Self], _: &[usize], (): &mut ()) -> Result<()> {
        for task in tasks {
            assert!(!task.due && !task.cancelled && task.written < task.tokens);
            task.written += 1;
            task.due = task.written % 3 == 0;
        }
        Ok(())
    }

    fn is_due(&self) -> bool {
        self.due
    }

    fn compress(&mut self) -> Result<()> {
        thread::yield_now();
        self.due = false;
        Ok(())
    }

    fn tell(&mut self, inbox: &Inbox<Held>) -> Result<bool> {
        while self.told < self.written {
            let id = self.told as u32;
            self.told += 1;
            inbox.push(&Event::Token {
                id,
                text: "é",
                end_of_text: false,
            });
        }
        let reason = match (self.cancelled, self.written == self.tokens) {
            (_, true) => StopReason::Length,
            (true, _) => StopReason::Cancelled,
            _ => return Ok(false),
        };
        inbox.push(&Event::End { reason, text: "" });
        Ok(true)
    }

    fn cancel(&mut self) {
        self.cancelled = true;
    }

    fn spoil(&mut self, _: &Error) {}

    fn into_rest(self) -> Held {
        self.held
    }
}

struct Model {
    budget: Arc<Budget>,
    doorbell: Arc<Doorbell>,
    mail: Arc<JobMail<Counter>>,
    figures: Arc<Figures>,
    threads: Vec<thread::JoinHandle<()>>,
    queue_events: usize,
}

impl Model {
    fn start(blocks: usize, options: SchedulerOptions) -> Self {
        let doorbell = Arc::new(Doorbell::default());
        let mail: Arc<JobMail<Counter>> = Arc::new(Mail::new(Arc::clone(&doorbell)));
        let figures = Arc::new(Figures::default());
        let (compressor, jobs) = mpsc::channel();
        let rounds = Rounds::new(
            options,
            8,
            Arc::clone(&mail),
            Arc::clone(&doorbell),
            Arc::clone(&figures),
            compressor,
        );
        let to_compress = Arc::clone(&mail);
        Self {
            budget: Arc::new(Budget {
                free: Mutex::new(blocks),
                all: blocks,
                doorbell: Arc::clone(&doorbell),
            }),
            doorbell,
            mail,
            figures,
            threads: vec![
                thread::spawn(move || rounds.run()),
                thread::spawn(move || compress_jobs(&jobs, &to_compress)),
            ],
            queue_events: options.queue_events,
        }
    }

    fn submit(&self, peak: usize, tokens: usize) -> Option<Arc<Inbox<Held>>> {
        let task = Counter {
            held: Held {
                budget: Arc::clone(&self.budget),
                blocks: 0,
            },
            peak,
            tokens,
            written: 0,
            told: 0,
            due: false,
            cancelled: false,
        };
        let inbox = Arc::new(Inbox::new(self.queue_events, Arc::clone(&self.doorbell)));
        assert!(self.figures.enter_queue(usize::MAX));
        let job = Job::new(task, Arc::clone(&inbox), self.figures.submitted());
        let brought = self.mail.bring(job);
        brought.is_ok().then_some(inbox)
    }

    fn shut_down(self) -> SchedulerMetrics {
        self.mail.close();
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.figures.read()
    }
}

/// In all orders together.
static PENDING: AtomicUsize = AtomicUsize::new(0);
static CANCELLED: AtomicUsize = AtomicUsize::new(0);

/// Reads to the end; what was read, and how it ended.
fn read(inbox: &Inbox<Held>) -> (usize, StopReason) {
    let (mut count, mut text) = (0, String::new());
    loop {
        let timeout = (count % 2 == 1).then_some(Duration::ZERO);
        match inbox.next(&mut text, timeout).unwrap() {
            Next::Event(Event::Token { id, text, .. }) => {
                assert_eq!((id as usize, text), (count, "é"));
                count += 1;
            }
            Next::Event(Event::End { reason, .. }) => return (count, reason),
            Next::Event(Event::Prefill { .. }) | Next::Ended => panic!("no such event"),
            Next::Pending => {
                PENDING.fetch_add(1, Ordering::Relaxed);
                // And now for as long as it takes.
                match inbox.next(&mut text, None).unwrap() {
                    Next::Event(Event::Token { id, .. }) => {
                        assert_eq!(id as usize, count);
                        count += 1;
                    }
                    Next::Event(Event::End { reason, .. }) => return (count, reason),
                    next => panic!("{next:?}"),
                }
            }
        }
    }
}

/// Three threads with answers that do not all fit at once, some of them cancelled or left.
fn readers_and_rounds() {
    let mut random = Random::new(rand::thread_rng().next_u64());
    let options = SchedulerOptions {
        max_rows: 1 + random.below(2),
        step_tokens: 8,
        queue_events: 1 + random.below(2),
        max_waiting: 8,
    };
    let model = Arc::new(Model::start(4, options));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (model, mut random) = (Arc::clone(&model), Random::new(random.bits()));
            thread::spawn(move || {
                let tokens = 1 + random.below(5);
                let inbox = model.submit(1 + random.below(4), tokens).unwrap();
                match random.below(4) {
                    0 => {
                        // As a handle that is dropped.
                        inbox.cancel();
                        drop(inbox.renounce());
                    }
                    1 => {
                        let canceller = Arc::clone(&inbox);
                        let canceller = thread::spawn(move || canceller.cancel());
                        let (count, reason) = read(&inbox);
                        assert!(count == tokens || reason == StopReason::Cancelled);
                        canceller.join().unwrap();
                        let cancelled = usize::from(reason == StopReason::Cancelled);
                        CANCELLED.fetch_add(cancelled, Ordering::Relaxed);
                        assert!(inbox.take().is_some());
                    }
                    2 => {
                        // The sequence is not wanted back: it goes when it can.
                        drop(inbox.renounce());
                        assert_eq!(read(&inbox), (tokens, StopReason::Length));
                        assert!(inbox.take().is_none());
                    }
                    _ => {
                        assert_eq!(read(&inbox), (tokens, StopReason::Length));
                        assert!(inbox.take().is_some(), "it is there with the last event");
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let Ok(model) = Arc::try_unwrap(model) else {
        panic!("the threads have ended")
    };
    let budget = Arc::clone(&model.budget);
    let figures = model.shut_down();
    assert_eq!(*lock(&budget.free), 4, "all came back");
    assert_eq!(figures.completed + figures.cancelled, 3);
    assert_eq!((figures.waiting, figures.running, figures.compressing), (0, 0, 0));
}

/// Shutting down beside readers: all of them come to an end.
fn readers_and_the_end() {
    let mut random = Random::new(rand::thread_rng().next_u64());
    let options = SchedulerOptions {
        max_rows: 2,
        step_tokens: 8,
        queue_events: 1,
        max_waiting: 8,
    };
    let model = Model::start(2, options);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let inbox = model.submit(1 + random.below(2), 4).unwrap();
            thread::spawn(move || {
                let (count, reason) = read(&inbox);
                assert!(count == 4 || reason == StopReason::Cancelled);
            })
        })
        .collect();
    let budget = Arc::clone(&model.budget);
    model.shut_down();
    for reader in readers {
        reader.join().unwrap();
    }
    assert_eq!(*lock(&budget.free), 2, "all came back");
}

fn in_many_orders(test: impl Fn() + Send + Sync + 'static) {
    let scheduler = RandomScheduler::new_from_seed(seed(), 10_000);
    Runner::new(scheduler, Config::default()).run(test);
}

#[test]
fn shuttle_finds_no_order_in_which_a_reader_waits_for_ever() {
    in_many_orders(readers_and_rounds);
    let (pending, cancelled) = (PENDING.load(Ordering::Relaxed), CANCELLED.load(Ordering::Relaxed));
    eprintln!("{pending} times nothing was there, {cancelled} cancelled");
    assert!(pending > 1000 && cancelled > 100);
}

#[test]
fn shuttle_finds_no_order_in_which_shutting_down_hangs() {
    in_many_orders(readers_and_the_end);
}

/// A doorbell that is silenced after the thread has looked: what the rounds must not do.
fn looks_first_and_silences_later() {
    let doorbell = Arc::new(Doorbell::default());
    let flag = Arc::new(Mutex::new(false));
    let ringer = {
        let (doorbell, flag) = (Arc::clone(&doorbell), Arc::clone(&flag));
        thread::spawn(move || {
            *lock(&flag) = true;
            doorbell.ring();
        })
    };
    while !*lock(&flag) {
        doorbell.silence();
        doorbell.wait();
    }
    ringer.join().unwrap();
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_a_doorbell_that_is_silenced_too_late() {
    in_many_orders(looks_first_and_silences_later);
}
