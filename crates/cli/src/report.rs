//! What an answer was like: one JSON object, or lines for people.

use std::time::Duration;

use reasoning_rpc_engine::{CompressionRecord, Sequence, Simd, StopReason};
use serde::Serialize;

use crate::output::human;

/// The object that `generate --output json` prints.
#[derive(Serialize)]
pub struct Answer<'a> {
    /// Ids in.
    pub prompt_ids: &'a [u32],
    /// Ids out, the stop token included.
    pub tokens: &'a [u32],
    /// The text, without the stop token.
    pub text: &'a str,
    /// Why it ended.
    pub stop_reason: &'static str,
    /// In order of time, then layer.
    pub compressions: Vec<Compression<'a>>,
    /// Figures.
    pub stats: Stats,
}

/// One compression of one layer.
#[derive(Serialize)]
pub struct Compression<'a> {
    at_token: usize,
    layer: usize,
    len_before: usize,
    len_after: usize,
    kept: &'a [Vec<u32>],
}

impl<'a> From<&'a CompressionRecord> for Compression<'a> {
    fn from(record: &'a CompressionRecord) -> Self {
        Self {
            at_token: record.at_token,
            layer: record.layer,
            len_before: record.len_before,
            len_after: record.len_after,
            kept: &record.kept,
        }
    }
}

/// Figures of an answer. A rate is absent if nothing was run.
#[derive(Serialize)]
pub struct Stats {
    prefill_tokens: usize,
    prefill_seconds: f64,
    prefill_tokens_per_second: Option<f64>,
    decode_tokens: usize,
    decode_seconds: f64,
    decode_tokens_per_second: Option<f64>,
    compressions: usize,
    compaction_seconds: f64,
    cache_bytes: usize,
    cache_peak_bytes: usize,
    cache_uncompressed_bytes: usize,
    seed: u64,
    simd: &'static str,
}

impl Stats {
    /// The figures of a sequence so far.
    pub fn of(sequence: &Sequence, simd: Simd) -> Self {
        let stats = sequence.stats();
        Self {
            prefill_tokens: stats.prefill_tokens,
            prefill_seconds: stats.prefill_time.as_secs_f64(),
            prefill_tokens_per_second: rate(stats.prefill_tokens, stats.prefill_time),
            decode_tokens: stats.decode_tokens,
            decode_seconds: stats.decode_time.as_secs_f64(),
            decode_tokens_per_second: rate(stats.decode_tokens, stats.decode_time),
            compressions: stats.compressions,
            compaction_seconds: stats.compaction_time.as_secs_f64(),
            cache_bytes: stats.cache_bytes,
            cache_peak_bytes: stats.cache_peak_bytes,
            cache_uncompressed_bytes: stats.cache_uncompressed_bytes,
            seed: sequence.seed(),
            simd: simd.name(),
        }
    }

    /// Lines for people.
    pub fn lines(&self, generated: usize, reason: StopReason) -> String {
        let rate = |rate: Option<f64>| rate.map_or(String::new(), |rate| format!(", {rate:.1} tokens/s"));
        [
            format!(
                "prompt       {} tokens in {:.2} s{}",
                self.prefill_tokens,
                self.prefill_seconds,
                rate(self.prefill_tokens_per_second)
            ),
            format!(
                "answer       {generated} tokens in {:.2} s{}; ended by: {}",
                self.decode_seconds,
                rate(self.decode_tokens_per_second),
                reason.name()
            ),
            format!(
                "compression  {} times, {:.3} s in all",
                self.compressions, self.compaction_seconds
            ),
            format!(
                "cache        {} now, {} at its peak, {} if uncompressed",
                human(self.cache_bytes as u64),
                human(self.cache_peak_bytes as u64),
                human(self.cache_uncompressed_bytes as u64)
            ),
            format!("seed         {}; {}", self.seed, self.simd),
        ]
        .join("\n")
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}
