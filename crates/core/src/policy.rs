//! The seam between deciding and applying: a policy looks, a store applies.

use std::any::Any;

use crate::plan::{LayerPlan, PlanError};
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

    /// Chooses for one layer. `plan` arrives empty, with the memory that [`LayerPlan::over`] asks for.
    ///
    /// # Errors
    /// What the view shows does not fit the policy.
    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError>;
}

/// What a policy needs to see, and when it is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// When it is asked.
    pub trigger: Trigger,
    /// Scores that the store computes before it asks, if any.
    pub scores: Option<ScoreRule>,
}

impl Spec {
    /// How many of the newest generated tokens' queries the store has to remember, per layer.
    pub fn window_queries(&self) -> usize {
        match (self.scores, self.trigger) {
            (Some(ScoreRule::WindowOverCandidates), Trigger::Interval(schedule)) => schedule.window(),
            _ => 0,
        }
    }
}

/// When a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trigger {
    /// Never: the cache is left whole.
    Never,
    /// At the steps of a schedule; the window's entries are not candidates.
    Interval(Schedule),
}

/// How candidates are scored before the policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreRule {
    /// The rotated queries of the window's tokens against the keys of the candidates: logits
    /// `q k^T / sqrt(head_dim)`, softmax in float32 over the candidates only, summed over the
    /// window's queries, averaged over the query heads of each KV head.
    WindowOverCandidates,
}

/// What a policy is shown of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerView<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Compressions of this sequence before this one.
    pub done: usize,
    /// Candidates of every KV head.
    pub candidates: &'a [usize],
    /// What [`Spec::scores`] asked for: the scores of every KV head, one head after the other, in
    /// cache order; empty if it asked for none.
    pub scores: &'a [f32],
}

impl<'a> LayerView<'a> {
    /// The scores of each KV head, in order.
    ///
    /// # Errors
    /// The number of scores is not the number of candidates, or a score is not a number.
    pub fn head_scores(&self) -> Result<impl Iterator<Item = &'a [f32]> + use<'a>, PlanError> {
        let expected: usize = self.candidates.iter().sum();
        if self.scores.len() != expected {
            return Err(PlanError::Scores(format!(
                "expected one per candidate, {expected} in all, found {}",
                self.scores.len()
            )));
        }
        if let Some(index) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(PlanError::Scores(format!(
                "layer {}: expected numbers, found NaN at {index}",
                self.layer
            )));
        }
        let mut rest = self.scores;
        Ok(self.candidates.iter().map(move |&count| {
            let (head, tail) = rest.split_at(count);
            rest = tail;
            head
        }))
    }
}

/// Keeps everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCompression;

impl Policy for NoCompression {
    fn name(&self) -> &str {
        "none"
    }

    fn spec(&self) -> Spec {
        Spec {
            trigger: Trigger::Never,
            scores: None,
        }
    }

    fn peak_generated(&self, generated: usize) -> usize {
        generated
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        for &count in view.candidates {
            let (all, _) = plan.room(count, 0)?;
            all.iter_mut().zip(0..).for_each(|(slot, index)| *slot = index);
            plan.push_room(count)?;
        }
        Ok(())
    }
}
