//! The answer of a policy: which candidates of a layer stay, and what is written into them.

use std::fmt;

/// A dropped candidate whose value goes into a kept one's:
/// `value(into) = (1 - sum of value_weight) value(into) + sum of value_weight value(from)`, as they were
/// before the compression.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Merge {
    /// The KV head.
    pub kv_head: u32,
    /// The candidate that is kept.
    pub into: u32,
    /// The candidate that is dropped.
    pub from: u32,
    /// Finite.
    pub value_weight: f32,
}

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
    history: Filled<'m, f32>,
    merges: Filled<'m, Merge>,
    directions: Filled<'m, f32>,
    shifts: Filled<'m, f32>,
    moments: &'m mut [f64],
}

/// The memory that a plan lies in. What it holds does not matter; what a policy's [`Spec`](crate::Spec) does
/// not ask for may be empty.
#[derive(Debug, Default)]
pub struct PlanParts<'m> {
    /// One number for each candidate of all KV heads.
    pub kept: &'m mut [u32],
    /// One number for each KV head.
    pub ends: &'m mut [usize],
    /// [`LayerPlan::scratch_floats`].
    pub scratch: &'m mut [f32],
    /// `history`: one float for each candidate of all KV heads.
    pub history: &'m mut [f32],
    /// `merges`: one for each candidate of all KV heads.
    pub merges: &'m mut [Merge],
    /// `merges`: `head_dim` floats for each KV head.
    pub directions: &'m mut [f32],
    /// `merges`: one float for each candidate of all KV heads.
    pub shifts: &'m mut [f32],
    /// `merges`: [`LayerPlan::moment_floats`].
    pub moments: &'m mut [f64],
}

/// Memory that is filled from its beginning.
#[derive(Debug)]
struct Filled<'m, T> {
    memory: &'m mut [T],
    used: usize,
}

impl<'m, T: Copy> Filled<'m, T> {
    fn of(memory: &'m mut [T]) -> Self {
        Self { memory, used: 0 }
    }

    fn push(&mut self, what: &'static str, items: &[T]) -> Result<(), PlanError> {
        let end = self.used + items.len();
        let found = self.memory.len();
        let room = self.memory.get_mut(self.used..end);
        let room = room.ok_or(PlanError::Changes {
            what,
            expected: end,
            found,
        })?;
        room.copy_from_slice(items);
        self.used = end;
        Ok(())
    }

    fn get(&self) -> &[T] {
        &self.memory[..self.used]
    }
}

impl<'m> LayerPlan<'m> {
    /// An empty plan: no set yet.
    pub fn over(parts: PlanParts<'m>) -> Self {
        Self {
            kept: parts.kept,
            ends: parts.ends,
            scratch: parts.scratch,
            sets: 0,
            history: Filled::of(parts.history),
            merges: Filled::of(parts.merges),
            directions: Filled::of(parts.directions),
            shifts: Filled::of(parts.shifts),
            moments: parts.moments,
        }
    }

    /// Sets the history of the next KV head's candidates ([`Spec::history`](crate::Spec)), dropped ones
    /// included.
    ///
    /// # Errors
    /// The plan's memory is less.
    pub fn push_history(&mut self, history: &[f32]) -> Result<(), PlanError> {
        self.history.push("history", history)
    }

    /// Adds a merge, ascending by KV head, `into`, `from`.
    ///
    /// # Errors
    /// The plan's memory is less.
    pub fn push_merge(&mut self, merge: Merge) -> Result<(), PlanError> {
        self.merges.push("merges", &[merge])
    }

    /// The merges that were added behind the first `from`, to be changed, and left in order.
    pub(crate) fn merges_from(&mut self, from: usize) -> &mut [Merge] {
        &mut self.merges.memory[from..self.merges.used]
    }

    /// Takes back all but the first `count` merges.
    pub(crate) fn keep_merges(&mut self, count: usize) {
        self.merges.used = count;
    }

    /// How many merges were added.
    pub(crate) fn merge_count(&self) -> usize {
        self.merges.used
    }

    /// Takes the scratch and that of the moments away, to be [`put`](Self::put_scratch) back: room for scores and
    /// norms of so many candidates, and for a square matrix and two vectors.
    ///
    /// # Errors
    /// The plan's memory is less.
    pub(crate) fn take_scratch(
        &mut self,
        candidates: usize,
        merged_dim: usize,
    ) -> Result<(&'m mut [f32], &'m mut [f64]), PlanError> {
        for (what, expected, found) in [
            (
                "scratch",
                Self::scratch_floats(candidates, merged_dim),
                self.scratch.len(),
            ),
            ("moments", Self::moment_floats(merged_dim), self.moments.len()),
        ] {
            if found < expected {
                return Err(PlanError::Changes {
                    what,
                    expected,
                    found,
                });
            }
        }
        Ok((
            std::mem::take(&mut self.scratch),
            std::mem::take(&mut self.moments),
        ))
    }

    pub(crate) fn put_scratch(&mut self, (scratch, moments): (&'m mut [f32], &'m mut [f64])) {
        (self.scratch, self.moments) = (scratch, moments);
    }

    /// Shifts the keys of the next KV head: candidate i's by `shifts[i] * direction`. One that is dropped
    /// has a shift of 0.
    ///
    /// # Errors
    /// The plan's memory is less.
    pub fn push_shifts(&mut self, direction: &[f64], shifts: &[f32]) -> Result<(), PlanError> {
        for &x in direction {
            self.directions.push("directions", &[x as f32])?;
        }
        self.shifts.push("shifts", shifts)
    }

    /// The history of all KV heads' candidates, or nothing.
    pub fn history(&self) -> &[f32] {
        self.history.get()
    }

    /// The merges of a KV head.
    pub fn merges(&self, kv_head: usize) -> &[Merge] {
        let all = self.merges.get();
        let start = all.partition_point(|merge| (merge.kv_head as usize) < kv_head);
        let end = all.partition_point(|merge| merge.kv_head as usize <= kv_head);
        &all[start..end]
    }

    /// The directions of all KV heads and the shifts of all their candidates, or nothing.
    pub fn shifts(&self) -> (&[f32], &[f32]) {
        (self.directions.get(), self.shifts.get())
    }

    /// Floats of scratch that policies may use, if no KV head has more `candidates`; `merged_dim` is the head_dim of those
    /// that merge, or 0.
    pub fn scratch_floats(candidates: usize, merged_dim: usize) -> usize {
        let keys = merged_dim.saturating_mul(merged_dim.saturating_add(3));
        candidates.saturating_mul(2).saturating_add(keys)
    }

    /// Floats of scratch in which a policy that merges works out where to shift keys.
    pub fn moment_floats(head_dim: usize) -> usize {
        head_dim.saturating_mul(head_dim.saturating_add(2))
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
    /// that is not a candidate; a history or shifts are not those of all candidates, or a number of them is
    /// infinite or NaN; a merge is not of a dropped candidate into a kept one, or out of order.
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
        self.validate_changes(candidates)
    }

    fn validate_changes(&self, candidates: &[usize]) -> Result<(), PlanError> {
        let total = candidates.iter().sum();
        for (what, numbers) in [("history", self.history.get()), ("shifts", self.shifts.get())] {
            if !numbers.is_empty() && numbers.len() != total {
                return Err(PlanError::Changes {
                    what,
                    expected: total,
                    found: numbers.len(),
                });
            }
        }
        let numbers = [self.history.get(), self.directions.get(), self.shifts.get()];
        if !numbers
            .iter()
            .all(|numbers| numbers.iter().all(|x| x.is_finite()))
        {
            return Err(PlanError::Scores(
                "expected finite history, directions and shifts, found infinity or NaN".into(),
            ));
        }
        let mut before = None;
        for merge in self.merges.get() {
            let is_kept = |index| self.kept(merge.kv_head as usize).binary_search(&index).is_ok();
            let sound = (merge.kv_head as usize) < candidates.len()
                && (merge.from as usize) < candidates[merge.kv_head as usize]
                && is_kept(merge.into)
                && !is_kept(merge.from)
                && merge.value_weight.is_finite()
                && before < Some((merge.kv_head, merge.into, merge.from));
            if !sound {
                return Err(PlanError::Merge(*merge));
            }
            before = Some((merge.kv_head, merge.into, merge.from));
        }
        let mut rest = self.shifts.get();
        if !rest.is_empty() {
            for (kv_head, &count) in candidates.iter().enumerate() {
                let (shifts, tail) = rest.split_at(count);
                rest = tail;
                let moved = shifts.iter().filter(|shift| **shift != 0.0).count();
                let kept = self.kept(kv_head).iter();
                if moved != kept.filter(|index| shifts[**index as usize] != 0.0).count() {
                    return Err(PlanError::Scores(format!(
                        "KV head {kv_head}: expected no shift of a dropped candidate's key, found one"
                    )));
                }
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
    history: Vec<f32>,
    merges: Vec<Merge>,
    directions: Vec<f32>,
    shifts: Vec<f32>,
    moments: Vec<f64>,
}

impl PlanMemory {
    /// An empty plan for KV heads with these numbers of candidates, whose keys have `head_dim` elements.
    pub fn lend(&mut self, candidates: &[usize], head_dim: usize) -> LayerPlan<'_> {
        let total = candidates.iter().sum();
        let most = candidates.iter().copied().max().unwrap_or(0);
        let grow = usize::max;
        self.kept.resize(grow(self.kept.len(), total), 0);
        self.ends.resize(grow(self.ends.len(), candidates.len()), 0);
        self.scratch.resize(
            grow(self.scratch.len(), LayerPlan::scratch_floats(most, head_dim)),
            0.0,
        );
        self.history.resize(grow(self.history.len(), total), 0.0);
        self.merges
            .resize(grow(self.merges.len(), total), Merge::default());
        self.shifts.resize(grow(self.shifts.len(), total), 0.0);
        let directions = candidates.len() * head_dim;
        self.directions
            .resize(grow(self.directions.len(), directions), 0.0);
        let moments = LayerPlan::moment_floats(head_dim);
        self.moments.resize(grow(self.moments.len(), moments), 0.0);
        LayerPlan::over(PlanParts {
            kept: &mut self.kept,
            ends: &mut self.ends,
            scratch: &mut self.scratch,
            history: &mut self.history,
            merges: &mut self.merges,
            directions: &mut self.directions,
            shifts: &mut self.shifts,
            moments: &mut self.moments,
        })
    }
}

/// A plan, or the material for one, that cannot be used.
#[derive(Debug, Clone, PartialEq)]
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
    /// A merge that cannot be.
    Merge(Merge),
    /// History, merges or shifts do not fit the candidates or the plan's memory.
    Changes {
        /// Which of them.
        what: &'static str,
        /// How many are needed.
        expected: usize,
        /// How many there are, or have room.
        found: usize,
    },
    /// The memory that the plan lies in is too small. Sets, entries of the next set, floats of scratch.
    Room {
        /// What is needed.
        expected: (usize, usize, usize),
        /// What there is.
        found: (usize, usize, usize),
    },
    /// The caller's selection failed, or chose what cannot be.
    Select(String),
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
            Self::Merge(merge) => write!(
                f,
                "plan: expected ascending merges of dropped candidates into kept ones, found {merge:?}"
            ),
            Self::Changes {
                what,
                expected,
                found,
            } => write!(f, "plan: {what}: expected {expected}, found {found}"),
            Self::Scores(text) => write!(f, "scores: {text}"),
            Self::Select(text) => write!(f, "select: {text}"),
            Self::UnequalHeads { expected, found } => write!(
                f,
                "layer aggregation: expected {expected} candidates in every KV head, found {found}"
            ),
        }
    }
}

impl std::error::Error for PlanError {}
