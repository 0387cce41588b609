//! Figures of an engine, counted by relaxed atomics: each is exact, and no two are of one moment.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::runner::NodeTimes;
use crate::sequence::Chunk;

/// Figures of an engine since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metrics {
    /// Sequences that exist now.
    pub sequences_alive: u64,
    /// Sequences made so far.
    pub sequences_created: u64,
    /// Steps that the graph has run.
    pub steps: u64,
    /// Given tokens whose K and V were written.
    pub prefill_tokens: u64,
    /// Generated tokens whose K and V were written.
    pub decode_tokens: u64,
    /// Compressions of a sequence, all layers at once.
    pub compressions: u64,
    /// Cache entries (one token of one KV head of one layer) that compressions dropped.
    pub entries_dropped: u64,
    /// Requests for blocks that did not fit the budget.
    pub budget_refusals: u64,
    /// Steps that the graph did not finish.
    pub failed_steps: u64,
    /// Time of the steps, compressions not included.
    pub step_time: Duration,
    /// Of the steps' time, that inside attention nodes: rotation, appending, attending. 0 in portable graphs.
    pub attention_time: Duration,
    /// Of the steps' time, that inside products with quantised matrices, their norms, gates and residuals, and
    /// the lookup of their rows. 0 where ONNX Runtime multiplies.
    pub product_time: Duration,
    /// Time of the compressions.
    pub compaction_time: Duration,
    /// Bytes of the budget, in whole blocks.
    pub budget_bytes: u64,
    /// Bytes of it that caches hold now.
    pub budget_used_bytes: u64,
    /// Bytes of it that are promised to sequences and not held yet.
    pub budget_promised_bytes: u64,
    /// The most bytes that caches held at any moment.
    pub budget_peak_bytes: u64,
}

impl Metrics {
    /// The figures in the text format of Prometheus, version 0.0.4.
    pub fn prometheus(&self) -> String {
        let rows: [(&str, &str, &str, String); 17] = [
            (
                "sequences",
                "gauge",
                "Sequences that exist now.",
                self.sequences_alive.to_string(),
            ),
            (
                "sequences_created_total",
                "counter",
                "Sequences made.",
                self.sequences_created.to_string(),
            ),
            (
                "steps_total",
                "counter",
                "Steps that the model has run.",
                self.steps.to_string(),
            ),
            (
                "prefill_tokens_total",
                "counter",
                "Given tokens run.",
                self.prefill_tokens.to_string(),
            ),
            (
                "decode_tokens_total",
                "counter",
                "Generated tokens run.",
                self.decode_tokens.to_string(),
            ),
            (
                "compressions_total",
                "counter",
                "Compressions of a sequence.",
                self.compressions.to_string(),
            ),
            (
                "entries_dropped_total",
                "counter",
                "Cache entries (one token of one KV head of one layer) that compressions dropped.",
                self.entries_dropped.to_string(),
            ),
            (
                "budget_refusals_total",
                "counter",
                "Requests for cache that did not fit the budget.",
                self.budget_refusals.to_string(),
            ),
            (
                "failed_steps_total",
                "counter",
                "Steps that failed.",
                self.failed_steps.to_string(),
            ),
            (
                "step_seconds_total",
                "counter",
                "Time of the steps, compressions not included.",
                seconds(self.step_time),
            ),
            (
                "attention_seconds_total",
                "counter",
                "Of the steps' time, that inside attention nodes.",
                seconds(self.attention_time),
            ),
            (
                "product_seconds_total",
                "counter",
                "Of the steps' time, that inside products with quantised matrices.",
                seconds(self.product_time),
            ),
            (
                "compaction_seconds_total",
                "counter",
                "Time of the compressions.",
                seconds(self.compaction_time),
            ),
            (
                "budget_bytes",
                "gauge",
                "Bytes of the cache budget.",
                self.budget_bytes.to_string(),
            ),
            (
                "budget_used_bytes",
                "gauge",
                "Bytes of the budget that caches hold.",
                self.budget_used_bytes.to_string(),
            ),
            (
                "budget_promised_bytes",
                "gauge",
                "Bytes of the budget that are promised and not held yet.",
                self.budget_promised_bytes.to_string(),
            ),
            (
                "budget_peak_bytes",
                "gauge",
                "The most bytes that caches held at any moment.",
                self.budget_peak_bytes.to_string(),
            ),
        ];
        prometheus(&rows)
    }
}

/// Name, type, help and value of figures in the text format of Prometheus, version 0.0.4.
pub(crate) fn prometheus(rows: &[(&str, &str, &str, String)]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP reasoning_rpc_{name} {help}\n# TYPE reasoning_rpc_{name} {kind}\nreasoning_rpc_{name} {value}"
        );
    }
    text
}

/// The shortest text that reads back as the same float64.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:?}", time.as_secs_f64())
}

/// What steps and compressions count.
#[derive(Default)]
pub(crate) struct Counters {
    steps: AtomicU64,
    prefill_tokens: AtomicU64,
    decode_tokens: AtomicU64,
    compressions: AtomicU64,
    entries_dropped: AtomicU64,
    failed_steps: AtomicU64,
    step_nanos: AtomicU64,
    attention_nanos: AtomicU64,
    product_nanos: AtomicU64,
    compaction_nanos: AtomicU64,
}

impl Counters {
    pub(crate) fn stepped<'a>(
        &self,
        chunks: impl Iterator<Item = &'a Chunk>,
        time: Duration,
        nodes: NodeTimes,
    ) {
        self.steps.fetch_add(1, Relaxed);
        self.step_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
        self.attention_nanos
            .fetch_add(nodes.attention.as_nanos() as u64, Relaxed);
        self.product_nanos
            .fetch_add(nodes.products.as_nanos() as u64, Relaxed);
        for chunk in chunks {
            let counter = match chunk.first_generated {
                Some(_) => &self.decode_tokens,
                None => &self.prefill_tokens,
            };
            counter.fetch_add(chunk.tokens.len() as u64, Relaxed);
        }
    }

    pub(crate) fn failed(&self) {
        self.failed_steps.fetch_add(1, Relaxed);
    }

    pub(crate) fn compressed(&self, dropped: usize, time: Duration) {
        self.compressions.fetch_add(1, Relaxed);
        self.entries_dropped.fetch_add(dropped as u64, Relaxed);
        self.compaction_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn read(&self) -> Metrics {
        let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Relaxed));
        Metrics {
            steps: self.steps.load(Relaxed),
            prefill_tokens: self.prefill_tokens.load(Relaxed),
            decode_tokens: self.decode_tokens.load(Relaxed),
            compressions: self.compressions.load(Relaxed),
            entries_dropped: self.entries_dropped.load(Relaxed),
            failed_steps: self.failed_steps.load(Relaxed),
            step_time: time(&self.step_nanos),
            attention_time: time(&self.attention_nanos),
            product_time: time(&self.product_nanos),
            compaction_time: time(&self.compaction_nanos),
            ..Metrics::default()
        }
    }
}
