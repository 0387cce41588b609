//! The answer of a policy: which candidates of a layer stay.

use std::fmt;

/// What one layer keeps of its candidates.
///
/// Indices count candidates of one KV head from 0, in cache order: prompt, other given text and the
/// window are not candidates, so no plan can drop them. A plan has one kept set for the whole layer
/// or one per KV head; sets may differ in length.
///
/// It lies in borrowed memory ([`PlanMemory`] has some to lend) and never allocates.
#[derive(Debug)]
pub struct LayerPlan<'m> {
    kept: &'m mut [u32],
    ends: &'m mut [usize],
    scratch: &'m mut [f32],
    sets: usize,
}

impl<'m> LayerPlan<'m> {
    /// An empty plan: no set yet. `kept` has room for all candidates of all KV heads, `ends` for one
    /// number per KV head, `scratch` for [`scratch_floats`](Self::scratch_floats); what they hold does
    /// not matter.
    pub fn over(kept: &'m mut [u32], ends: &'m mut [usize], scratch: &'m mut [f32]) -> Self {
        Self {
            kept,
            ends,
            scratch,
            sets: 0,
        }
    }

    /// Floats of scratch that policies may use, if no KV head has more `candidates`.
    pub fn scratch_floats(candidates: usize) -> usize {
        candidates.saturating_mul(2)
    }

    fn used(&self) -> usize {
        self.sets.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    /// Room for the next set, to be filled from its beginning and then made a set by
    /// [`push_room`](Self::push_room), and scratch.
    ///
    /// # Errors
    /// The plan's memory is less than `entries` and `floats`.
    pub fn room(&mut self, entries: usize, floats: usize) -> Result<(&mut [u32], &mut [f32]), PlanError> {
        let used = self.used();
        let left = self.kept.len() - used;
        if entries > left || floats > self.scratch.len() || self.sets >= self.ends.len() {
            return Err(PlanError::Room {
                expected: (self.sets + 1, entries, floats),
                found: (self.ends.len(), left, self.scratch.len()),
            });
        }
        Ok((&mut self.kept[used..used + entries], &mut self.scratch[..floats]))
    }

    /// Makes the first `entries` of the [`room`](Self::room) the next kept set.
    ///
    /// # Errors
    /// The plan's memory is less.
    pub fn push_room(&mut self, entries: usize) -> Result<(), PlanError> {
        self.room(entries, 0)?;
        self.ends[self.sets] = self.used() + entries;
        self.sets += 1;
        Ok(())
    }

    /// Adds the next kept set (the layer's only one, or the next KV head's), ascending.
    ///
    /// # Errors
    /// The plan's memory is less.
    pub fn push_set(&mut self, kept: &[u32]) -> Result<(), PlanError> {
        self.room(kept.len(), 0)?.0.copy_from_slice(kept);
        self.push_room(kept.len())
    }

    /// Number of kept sets: 1, or one per KV head.
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// The `index`-th kept set.
    pub fn set(&self, index: usize) -> &[u32] {
        let ends = &self.ends[..self.sets];
        let start = if index == 0 { 0 } else { ends[index - 1] };
        &self.kept[start..ends[index]]
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

/// Memory for plans, reused from layer to layer.
#[derive(Debug, Clone, Default)]
pub struct PlanMemory {
    kept: Vec<u32>,
    ends: Vec<usize>,
    scratch: Vec<f32>,
}

impl PlanMemory {
    /// An empty plan for KV heads with these numbers of candidates.
    pub fn lend(&mut self, candidates: &[usize]) -> LayerPlan<'_> {
        let most = candidates.iter().copied().max().unwrap_or(0);
        let grow = usize::max;
        self.kept
            .resize(grow(self.kept.len(), candidates.iter().sum()), 0);
        self.ends.resize(grow(self.ends.len(), candidates.len()), 0);
        self.scratch
            .resize(grow(self.scratch.len(), LayerPlan::scratch_floats(most)), 0.0);
        LayerPlan::over(&mut self.kept, &mut self.ends, &mut self.scratch)
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
    /// The memory that the plan lies in is too small. Sets, entries of the next set, floats of scratch.
    Room {
        /// What is needed.
        expected: (usize, usize, usize),
        /// What there is.
        found: (usize, usize, usize),
    },
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
            Self::Room { expected, found } => write!(
                f,
                "memory of the plan: expected {} sets, {} entries and {} floats, found {}, {} and {}",
                expected.0, expected.1, expected.2, found.0, found.1, found.2
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
