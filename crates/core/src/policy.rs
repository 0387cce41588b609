//! The seam between deciding and applying: a policy looks, a store applies.

use std::any::Any;

use crate::plan::{LayerPlan, PlanError};
use crate::policies::{PolicyKind, RpcOptions};
use crate::rolling::Rolling;
use crate::schedule::Schedule;

/// Decides which cache entries of a sequence stay.
///
/// A policy is pure: it declares in [`spec`](Self::spec) when it is asked and what it must see, is
/// shown just that, and answers with a plan. It holds no state of a sequence, so that one value
/// serves any number of sequences and threads.
///
/// The trait is where every method fits, as data in [`Spec`] and [`LayerView`] and never as another
/// method that some refuse: a method asked at other moments is a [`Trigger`], one that scores
/// differently is a [`ScoreRule`], one that reads keys or accumulated attention is a field of the
/// view, and one that merges dropped entries is a field of the plan.
pub trait Policy: Any + Send + Sync {
    /// The name that users select it by.
    fn name(&self) -> &str;

    /// What it needs and when it is asked. Constant for the life of the policy.
    fn spec(&self) -> Spec;

    /// The most generated entries that a layer holds at any moment until `generated` tokens are
    /// written; exact, so that a request is admitted or refused before its first token.
    fn peak_generated(&self, generated: usize) -> usize;

    /// The entries of each KV head for which blocks of so many are promised to a sequence with so many given and
    /// generated tokens: the most that it holds; where heads share their budgets, a block more less one entry, so that it
    /// is enough however they do, but never more than the tokens.
    fn promised_entries(&self, given: usize, generated: usize, block_entries: usize) -> usize {
        let more = match self.spec().adaptive {
            true => block_entries.saturating_sub(1),
            false => 0,
        };
        given + (self.peak_generated(generated) + more).min(generated)
    }

    /// Chooses for one layer. `plan` arrives empty, with the memory that [`PlanParts`](crate::PlanParts) names.
    ///
    /// # Errors
    /// What the view shows does not fit the policy.
    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError>;

    /// Tokens that the store puts behind a generated one, as if they had been generated too: part of the text, and
    /// of what [`peak_generated`](Self::peak_generated) counts.
    fn follow(&self, _token: u32) -> &[u32] {
        &[]
    }

    /// What [`PolicyKind::build`] makes it from, so that a sequence can be saved; none for a policy that
    /// is not of this crate, and for [`LightThinker`](crate::LightThinker), which is made from token ids.
    fn recipe(&self) -> Option<(PolicyKind, RpcOptions)> {
        None
    }
}

/// What a policy needs to see, and when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spec {
    /// When it is asked.
    pub trigger: Trigger,
    /// Scores that the store computes before it asks, if any.
    pub scores: Option<ScoreRule>,
    /// What attention the store adds up for each entry as its score, if any: not beside `scores`.
    pub attention: Option<Attention>,
    /// Whether each KV head has a kept set of its own, or the layer one.
    pub per_kv_head: bool,
    /// Whether KV heads of a layer may keep different numbers of entries: [`Policy::peak_generated`] is of their mean
    /// then.
    pub adaptive: bool,
    /// Whether it is shown the candidates' positions; one that is asked at every token is in any case.
    pub positions: bool,
    /// Whether it is shown the candidates' keys.
    pub keys: bool,
    /// Whether it is shown the sums of the magnitudes of the candidates' values.
    pub value_norms: bool,
    /// Whether it is shown the queries that scored.
    pub queries: bool,
    /// Whether it is shown the mean and the second moments of the queries whose attention was added up, in place of
    /// the queries.
    pub moments: bool,
    /// Whether the store keeps a float for every entry between compressions, 0 at first, which the plan
    /// sets for those that stay.
    pub history: bool,
    /// Whether its plans merge dropped candidates into kept ones, and shift keys.
    pub merges: bool,
}

impl Spec {
    /// Tokens whose queries are added to moments at once.
    pub const MOMENT_TOKENS: usize = 32;

    /// Floats of the moments of one KV head: the sums of the queries' elements and of their products, as
    /// [`LayerView::moments`] has them; 0 if there are none.
    pub fn moment_floats(&self, head_dim: usize) -> usize {
        usize::from(self.moments) * head_dim * (head_dim + 1)
    }

    /// How many of the tokens of [`window_queries`](Self::window_queries) have queries that the budget counts: all of a
    /// policy that stores those of a whole interval, none where they are those of a window.
    pub fn counted_queries(&self) -> usize {
        match self.scores {
            Some(ScoreRule::IntervalAhead) => self.window_queries(),
            _ => 0,
        }
    }

    /// How many of the newest generated tokens' queries the store has to remember, per layer.
    ///
    /// For moments it remembers [`MOMENT_TOKENS`](Self::MOMENT_TOKENS) too, to add their queries to the moments in turns.
    pub fn window_queries(&self) -> usize {
        match (self.scores, self.trigger) {
            (None, _) if self.moments => 2 * Self::MOMENT_TOKENS,
            (None, _) | (_, Trigger::Never | Trigger::EveryToken(_) | Trigger::Thought { .. }) => 0,
            (Some(ScoreRule::IntervalAhead), Trigger::Interval(schedule)) => schedule.interval(),
            (Some(_), Trigger::Interval(schedule)) => schedule.window(),
        }
    }
}

/// When a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Trigger {
    /// Never: the cache is left whole.
    #[default]
    Never,
    /// At the steps of a schedule; the window's entries are not candidates.
    Interval(Schedule),
    /// After every generated token that leaves more entries than are to stay: one of them goes, of each KV
    /// head. Entries are not in the order of their positions then, and every KV head's in another; those of
    /// a layer that drops one for all are in the same.
    EveryToken(Rolling),
    /// When the first `gists` of the tokens that follow one ([`Policy::follow`]) are written. Candidates are the
    /// generated entries up to that one, from behind those that followed the one before.
    Thought {
        /// How many.
        gists: usize,
    },
}

/// How candidates are scored before the policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreRule {
    /// The rotated queries of the window's tokens against the keys of the candidates: logits
    /// `q k^T / sqrt(head_dim)`, softmax in float32 over the candidates only, summed over the
    /// window's queries, averaged over the query heads of each KV head.
    WindowOverCandidates,
    /// The same queries, with the softmax over all entries that each of them sees: given ones, candidates,
    /// and the window up to its own.
    WindowOverAll,
    /// The queries of the last interval's tokens, the window's among them, each rotated on by as many
    /// positions, to where the next interval will ask from: logits as above, softmax over all entries, none
    /// hidden, mean over these queries and the query heads of each KV head.
    IntervalAhead,
}

/// Which queries' attention is a score, unless it says otherwise: the softmax over all entries that a query sees, summed over the query
/// heads of each KV head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// The newest query's.
    Newest,
    /// That of all queries since the entry was written, its own included.
    Sum,
    /// That of the last interval's queries since the entry was written, its own included, each rotated on by the
    /// interval's positions, to where the next one will ask from, over the entries that it sees; the mean over the
    /// interval and the query heads. It is added to what the plan set as the entry's history.
    Ahead {
        /// Tokens of an interval.
        interval: usize,
    },
}

/// What a policy is shown of one layer. Lists of candidates are those of every KV head, one head after the
/// other, in cache order; what [`Spec`] does not ask for is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct LayerView<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Compressions of this sequence before this one.
    pub done: usize,
    /// The sequence's seed.
    pub seed: u64,
    /// Elements of a key and of a query.
    pub head_dim: usize,
    /// Candidates of every KV head.
    pub candidates: &'a [usize],
    /// What [`Spec::scores`] or [`Spec::attention`] asked for.
    pub scores: &'a [f32],
    /// Their positions in the text ([`Spec::positions`], [`Trigger::EveryToken`]).
    pub positions: &'a [u32],
    /// What the last plan set for each candidate ([`Spec::history`]).
    pub history: &'a [f32],
    /// The candidates' keys, rotated, `head_dim` elements each ([`Spec::keys`]).
    pub keys: &'a [f32],
    /// The sum of the magnitudes of each candidate's value ([`Spec::value_norms`]).
    pub value_norms: &'a [f32],
    /// The queries that scored, as they did, `head_dim` elements each; equally many of each KV head, one
    /// head after the other ([`Spec::queries`]).
    pub queries: &'a [f32],
    /// For each KV head the queries' mean `[head_dim]`, and the mean of their products `[head_dim][head_dim]`, of
    /// which the lower triangle is there ([`Spec::moments`]).
    pub moments: &'a [f32],
}

impl<'a> LayerView<'a> {
    /// The scores of each KV head, in order.
    ///
    /// # Errors
    /// The number of scores is not the number of candidates, or a score is not a number.
    pub fn head_scores(&self) -> Result<impl Iterator<Item = &'a [f32]> + use<'a>, PlanError> {
        if let Some(index) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(PlanError::Scores(format!(
                "layer {}: expected numbers, found NaN at {index}",
                self.layer
            )));
        }
        self.by_head("scores", self.scores, 1)
    }

    /// The history of each KV head's candidates, in order.
    ///
    /// # Errors
    /// It is not one number per candidate.
    pub fn head_history(&self) -> Result<impl Iterator<Item = &'a [f32]> + use<'a>, PlanError> {
        self.by_head("history", self.history, 1)
    }

    /// The positions of each KV head's candidates, in order.
    ///
    /// # Errors
    /// They are not one per candidate.
    pub fn head_positions(&self) -> Result<impl Iterator<Item = &'a [u32]> + use<'a>, PlanError> {
        self.by_head("positions", self.positions, 1)
    }

    /// The norms of each KV head's candidates' values, in order.
    ///
    /// # Errors
    /// They are not one per candidate.
    pub fn head_value_norms(&self) -> Result<impl Iterator<Item = &'a [f32]> + use<'a>, PlanError> {
        self.by_head("value norms", self.value_norms, 1)
    }

    /// The keys of each KV head's candidates, in order.
    ///
    /// # Errors
    /// They are not one per candidate.
    pub fn head_keys(&self) -> Result<impl Iterator<Item = &'a [f32]> + use<'a>, PlanError> {
        self.by_head("keys", self.keys, self.head_dim)
    }

    fn by_head<T>(
        &self,
        what: &str,
        all: &'a [T],
        width: usize,
    ) -> Result<impl Iterator<Item = &'a [T]> + use<'a, T>, PlanError> {
        let expected = self.candidates.iter().sum::<usize>() * width;
        if all.len() != expected {
            return Err(PlanError::Scores(format!(
                "{what}: expected one per candidate, {expected} numbers in all, found {}",
                all.len()
            )));
        }
        let mut rest = all;
        Ok(self.candidates.iter().map(move |&count| {
            let (head, tail) = rest.split_at(count * width);
            rest = tail;
            head
        }))
    }
}
