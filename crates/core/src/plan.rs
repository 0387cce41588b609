//! The answer of a policy: which candidates of a layer stay.

use std::fmt;

/// What one layer keeps of its candidates.
///
/// Indices count candidates of one KV head from 0, in cache order: prompt, other given text and the
/// window are not candidates, so no plan can drop them. A plan has one kept set for the whole layer
/// or one per KV head; sets may differ in length.
///
/// Reused from layer to layer: [`clear`](Self::clear) keeps the memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerPlan {
    kept: Vec<u32>,
    ends: Vec<usize>,
}

impl LayerPlan {
    /// An empty plan: no set yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all sets.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.ends.clear();
    }

    /// Adds the next kept set (the layer's only one, or the next KV head's), ascending.
    pub fn push_set(&mut self, kept: &[u32]) {
        self.kept.extend_from_slice(kept);
        self.ends.push(self.kept.len());
    }

    /// Number of kept sets: 1, or one per KV head.
    pub fn sets(&self) -> usize {
        self.ends.len()
    }

    /// The `index`-th kept set.
    pub fn set(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.kept[start..self.ends[index]]
    }

    /// The kept set that applies to a KV head. Call it on a validated plan.
    pub fn kept(&self, kv_head: usize) -> &[u32] {
        self.set(if self.sets() == 1 { 0 } else { kv_head })
    }

    /// Checks the plan against the number of candidates of every KV head.
    ///
    /// # Errors
    /// The number of sets is neither 1 nor the number of KV heads, one set is to serve KV heads
    /// with different numbers of candidates, or a set is not strictly ascending or names an index
    /// that is not a candidate.
    pub fn validate(&self, candidates: &[usize]) -> Result<(), PlanError> {
        if self.sets() != 1 && self.sets() != candidates.len() {
            return Err(PlanError::Sets {
                expected: candidates.len(),
                found: self.sets(),
            });
        }
        for (kv_head, &count) in candidates.iter().enumerate() {
            let kept = self.kept(kv_head);
            if let Some(pair) = kept.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(PlanError::Order {
                    kv_head,
                    first: pair[0],
                    second: pair[1],
                });
            }
            if let Some(&last) = kept.last()
                && last as usize >= count
            {
                return Err(PlanError::Range {
                    kv_head,
                    index: last,
                    candidates: count,
                });
            }
        }
        Ok(())
    }
}

/// A plan, or the material for one, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// Wrong number of kept sets.
    Sets {
        /// KV heads of the layer.
        expected: usize,
        /// Sets of the plan.
        found: usize,
    },
    /// A kept set is not strictly ascending.
    Order {
        /// The KV head that it is for.
        kv_head: usize,
        /// An index of the set.
        first: u32,
        /// The one after it, which is not larger.
        second: u32,
    },
    /// A kept set names an index beyond the candidates.
    Range {
        /// The KV head that it is for.
        kv_head: usize,
        /// The index.
        index: u32,
        /// Candidates of that head.
        candidates: usize,
    },
    /// The scores do not fit the candidates, or a score is not a number.
    Scores(String),
    /// Layer aggregation needs equally many candidates in every KV head.
    UnequalHeads {
        /// Candidates of the first KV head.
        expected: usize,
        /// Candidates of another.
        found: usize,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sets { expected, found } => write!(
                f,
                "plan: expected 1 kept set or one for each of {expected} KV heads, found {found}"
            ),
            Self::Order {
                kv_head,
                first,
                second,
            } => write!(
                f,
                "plan of KV head {kv_head}: expected strictly ascending indices, found {first} before {second}"
            ),
            Self::Range {
                kv_head,
                index,
                candidates,
            } => write!(
                f,
                "plan of KV head {kv_head}: expected indices below {candidates} (its candidates), found {index}"
            ),
            Self::Scores(text) => write!(f, "scores: {text}"),
            Self::UnequalHeads { expected, found } => write!(
                f,
                "layer aggregation: expected {expected} candidates in every KV head, found {found}"
            ),
        }
    }
}

impl std::error::Error for PlanError {}
