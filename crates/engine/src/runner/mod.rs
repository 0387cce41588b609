//! Runs a graph for one step. A runner knows rows, tokens and caches; it decides nothing.

mod cached;
mod portable;

pub(crate) use cached::CachedRunner;
pub(crate) use portable::PortableRunner;

use std::time::Duration;

use reasoning_rpc_core::Attention;

use crate::cache::SequenceCache;
use crate::error::Result;

/// Runs one step of the graph.
///
/// The keys and values of the new tokens are written behind the valid entries of every row's cache
/// (room was made before); lengths stay as they are until the engine commits. A runner has one
/// driver at a time.
pub(crate) trait Runner: Send {
    /// Fills `step.logits`; the rows come back whatever happens.
    fn run(&mut self, step: &mut Step) -> Result<()>;
}

/// The inputs and outputs of one step; reused from step to step.
#[derive(Default)]
pub(crate) struct Step {
    /// New tokens of all rows, row after row.
    pub ids: Vec<i64>,
    /// Their positions in their texts.
    pub positions: Vec<i64>,
    /// Where each row's tokens begin, and the end of the last.
    pub row_offsets: Vec<i32>,
    /// Each row's slot.
    pub slots: Vec<i64>,
    /// Indices into the tokens: those that get logits.
    pub logits_rows: Vec<i32>,
    /// `[logits_rows][vocab]`.
    pub logits: Vec<f32>,
    /// The rows' caches, lent by their sequences.
    pub rows: Vec<StepRow>,
    /// Where the time of the run went.
    pub times: NodeTimes,
}

/// Time inside our own nodes of one run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NodeTimes {
    pub attention: Duration,
    pub products: Duration,
}

/// One sequence's part in a step.
pub(crate) struct StepRow {
    /// The handle of the cache: index and generation.
    pub slot: i64,
    /// The cache.
    pub cache: Box<SequenceCache>,
    /// If the tokens are generated ones: how many generated tokens were written before them.
    pub first_generated: Option<usize>,
    /// What attention its entries get to keep as their history; of at most `ATTEND_TOKEN_TILE` tokens.
    pub attention: Option<Attention>,
}

impl Step {
    /// Forgets the last step.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.row_offsets.clear();
        self.row_offsets.push(0);
        self.slots.clear();
        self.logits_rows.clear();
        self.rows.clear();
        self.times = NodeTimes::default();
    }
}
