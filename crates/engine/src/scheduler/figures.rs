//! Figures of a scheduler, counted by relaxed atomics: each is exact, and no two are of one moment.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::metrics::{prometheus, seconds};

/// Figures of a scheduler since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SchedulerMetrics {
    /// Answers that wait to be admitted.
    pub waiting: u64,
    /// Admitted answers whose next token a step is due to write.
    pub running: u64,
    /// Admitted answers that wait for their readers.
    pub paused: u64,
    /// Admitted answers whose cache is being compressed, or about to be.
    pub compressing: u64,
    /// Answers submitted, those that were refused not counted.
    pub submitted: u64,
    /// Answers admitted.
    pub admitted: u64,
    /// Answers that ended by themselves.
    pub completed: u64,
    /// Answers that were cancelled.
    pub cancelled: u64,
    /// Answers that ended with an error.
    pub failed: u64,
    /// Steps.
    pub steps: u64,
    /// Rows of all steps together: by `steps`, those of one.
    pub rows: u64,
    /// The time that the admitted answers had waited, together.
    pub waiting_time: Duration,
}

impl SchedulerMetrics {
    /// The figures in the text format of Prometheus, version 0.0.4. Their names begin with
    /// `reasoning_rpc_scheduler_`, so that they can follow those of the engine.
    pub fn prometheus(&self) -> String {
        let (gauge, counter) = ("gauge", "counter");
        let row = |name, kind, help, value: u64| (name, kind, help, value.to_string());
        prometheus(&[
            row(
                "scheduler_waiting",
                gauge,
                "Answers that wait to be admitted.",
                self.waiting,
            ),
            row(
                "scheduler_running",
                gauge,
                "Answers that a step is due for.",
                self.running,
            ),
            row(
                "scheduler_paused",
                gauge,
                "Answers that wait for their readers.",
                self.paused,
            ),
            row(
                "scheduler_compressing",
                gauge,
                "Answers whose cache is being compressed.",
                self.compressing,
            ),
            row(
                "scheduler_submitted_total",
                counter,
                "Answers submitted.",
                self.submitted,
            ),
            row(
                "scheduler_admitted_total",
                counter,
                "Answers admitted.",
                self.admitted,
            ),
            row(
                "scheduler_completed_total",
                counter,
                "Answers that ended by themselves.",
                self.completed,
            ),
            row(
                "scheduler_cancelled_total",
                counter,
                "Answers that were cancelled.",
                self.cancelled,
            ),
            row(
                "scheduler_failed_total",
                counter,
                "Answers that ended with an error.",
                self.failed,
            ),
            row("scheduler_steps_total", counter, "Steps.", self.steps),
            row("scheduler_rows_total", counter, "Rows of all steps.", self.rows),
            (
                "scheduler_waiting_seconds_total",
                counter,
                "Time that the admitted answers had waited.",
                seconds(self.waiting_time),
            ),
        ])
    }
}

#[derive(Default)]
pub(super) struct Figures {
    waiting: AtomicUsize,
    running: AtomicU64,
    paused: AtomicU64,
    compressing: AtomicU64,
    submitted: AtomicU64,
    admitted: AtomicU64,
    completed: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    steps: AtomicU64,
    rows: AtomicU64,
    waiting_nanos: AtomicU64,
}

impl Figures {
    /// Takes a place in the queue, which has `most`: false if there is none.
    pub(super) fn enter_queue(&self, most: usize) -> bool {
        let enter = |waiting| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, enter).is_ok()
    }

    pub(super) fn leave_queue(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    pub(super) fn submitted(&self) -> u64 {
        self.submitted.fetch_add(1, Relaxed)
    }

    pub(super) fn admitted(&self, waited: Duration) {
        self.admitted.fetch_add(1, Relaxed);
        self.waiting_nanos.fetch_add(waited.as_nanos() as u64, Relaxed);
    }

    pub(super) fn completed(&self) {
        self.completed.fetch_add(1, Relaxed);
    }

    pub(super) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(super) fn stepped(&self, rows: usize) {
        self.steps.fetch_add(1, Relaxed);
        self.rows.fetch_add(rows as u64, Relaxed);
    }

    pub(super) fn show(&self, running: usize, paused: usize, compressing: usize) {
        self.running.store(running as u64, Relaxed);
        self.paused.store(paused as u64, Relaxed);
        self.compressing.store(compressing as u64, Relaxed);
    }

    pub(super) fn read(&self) -> SchedulerMetrics {
        SchedulerMetrics {
            waiting: self.waiting.load(Relaxed) as u64,
            running: self.running.load(Relaxed),
            paused: self.paused.load(Relaxed),
            compressing: self.compressing.load(Relaxed),
            submitted: self.submitted.load(Relaxed),
            admitted: self.admitted.load(Relaxed),
            completed: self.completed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            steps: self.steps.load(Relaxed),
            rows: self.rows.load(Relaxed),
            waiting_time: Duration::from_nanos(self.waiting_nanos.load(Relaxed)),
        }
    }
}
