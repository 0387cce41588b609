//! What becomes of dropped entries: each joins a kept one of its KV head.

use crate::plan::{LayerPlan, Merge, PlanError};
use crate::policies::Similarity;
use crate::vectors::dot;

/// The ridge, in mean variances of the queries.
const RIDGE: f64 = 0.1;
/// The most that a key's logits rise by.
const LARGEST_RISE: f64 = 3.0;

/// A KV head whose dropped candidates are merged.
pub(crate) struct Head<'a> {
    pub kv_head: u32,
    /// `[candidates, head_dim]`
    pub keys: &'a [f32],
    pub queries: Asked<'a>,
    pub head_dim: usize,
    pub similarity: Similarity,
}

/// What there is of the queries.
#[derive(Clone, Copy)]
pub(crate) enum Asked<'a> {
    Queries(&'a [f32]),
    /// As [`LayerView::moments`](crate::policy::LayerView::moments).
    Moments(&'a [f32]),
}

impl Head<'_> {
    /// Merges what the plan's last set dropped. `scores` of kept ones become W; `scratch` and `moments` are the plan's.
    pub(crate) fn merge(
        &self,
        plan: &mut LayerPlan<'_>,
        scores: &mut [f32],
        scratch: &mut [f32],
        moments: &mut [f64],
    ) -> Result<(), PlanError> {
        let (count, head_dim) = (scores.len(), self.head_dim);
        let (queries, expected) = match self.queries {
            Asked::Queries(queries) => (queries.len(), head_dim),
            Asked::Moments(moments) => (moments.len(), head_dim * (head_dim + 1)),
        };
        if head_dim == 0 || self.keys.len() != count * head_dim || queries < expected {
            return Err(PlanError::Scores(format!(
                "keys and queries: expected {} floats and at least {expected}, found {} and {queries}",
                count * head_dim,
                self.keys.len(),
            )));
        }
        let (own, scratch) = scratch.split_at_mut(count);
        let mut moments = Moments::over(moments, head_dim);
        moments.fill(self.queries);
        let first = plan.merge_count();
        self.join(plan, own, scratch, &mut moments)?;
        let (direction, rise) = moments.direction();
        // What is known of each key is not needed any more.
        let shifts = own;
        shifts.fill(0.0);
        // Sums in float64, in the candidates' order. What joins an entry is dropped, and keeps its score.
        let joined = plan.merges_from(first);
        let (mut at, mut used) = (0, 0);
        while at < joined.len() {
            let into = joined[at].into;
            let end = at + joined[at..].partition_point(|merge| merge.into == into);
            let own = f64::from(scores[into as usize]);
            let others = joined[at..end].iter();
            let all = others.fold(own, |sum, merge| sum + f64::from(scores[merge.from as usize]));
            if all > 0.0 {
                for from in at..end {
                    joined[used] = joined[from];
                    let score = f64::from(scores[joined[from].from as usize]);
                    joined[used].value_weight = (score / all) as f32;
                    used += 1;
                }
            }
            if all > own && rise > 0.0 {
                let wanted = (all / own).ln().min(LARGEST_RISE);
                shifts[into as usize] = (wanted / rise) as f32;
            }
            scores[into as usize] = all as f32;
            at = end;
        }
        plan.keep_merges(first + used);
        plan.push_shifts(direction, shifts)
    }

    /// Adds a merge, without a weight, of each candidate that the plan's last set dropped into the kept one that is the
    /// most similar, the lower of equals. `own` has room for a number of each key.
    fn join(
        &self,
        plan: &mut LayerPlan<'_>,
        own: &mut [f32],
        scratch: &mut [f32],
        moments: &mut Moments<'_>,
    ) -> Result<(), PlanError> {
        let keys = || self.keys.chunks_exact(self.head_dim);
        let mut metric = Metric::over(scratch, self.head_dim);
        match self.similarity {
            Similarity::Logits => {
                moments.covariance(metric.matrix);
                moments.mean_of(self.keys, metric.centre);
                for (half, key) in own.iter_mut().zip(keys()) {
                    metric.weigh(key);
                    *half = 0.5 * dot(metric.vector, metric.product);
                }
            }
            Similarity::Cosine => {
                for (norm, key) in own.iter_mut().zip(keys()) {
                    let square: f64 = key.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                    // The reciprocal; of zeros, 0.
                    *norm = if square > 0.0 {
                        (1.0 / square.sqrt()) as f32
                    } else {
                        0.0
                    };
                }
            }
        }
        let first = plan.merge_count();
        let last = plan.sets() - 1;
        if plan.set(last).is_empty() {
            return Ok(());
        }
        for (from, key) in (0..own.len() as u32).zip(keys()) {
            let kept = plan.set(last);
            if kept.binary_search(&from).is_ok() {
                continue;
            }
            // What is the same for all kept keys is left out: the dropped key's length, or its own variance.
            let key = match self.similarity {
                Similarity::Logits => {
                    metric.weigh(key);
                    &*metric.product
                }
                Similarity::Cosine => key,
            };
            let (mut into, mut largest) = (kept[0], f32::NEG_INFINITY);
            for &index in kept {
                let other = &self.keys[index as usize * self.head_dim..][..self.head_dim];
                let found = match self.similarity {
                    Similarity::Logits => dot(key, other) - own[index as usize],
                    Similarity::Cosine => dot(key, other) * own[index as usize],
                };
                if found > largest {
                    (into, largest) = (index, found);
                }
            }
            plan.push_merge(Merge {
                kv_head: self.kv_head,
                into,
                from,
                value_weight: 0.0,
            })?;
        }
        plan.merges_from(first)
            .sort_unstable_by_key(|merge| (merge.into, merge.from));
        Ok(())
    }
}

/// How far keys are apart, in [`LayerPlan::scratch_floats`].
struct Metric<'m> {
    /// M, [`Moments::covariance`].
    matrix: &'m mut [f32],
    /// What keys are taken relative to, so that what they have in common takes no digits.
    centre: &'m mut [f32],
    /// A key relative to that, and M times it.
    vector: &'m mut [f32],
    product: &'m mut [f32],
}

impl<'m> Metric<'m> {
    fn over(memory: &'m mut [f32], head_dim: usize) -> Self {
        let (matrix, rest) = memory.split_at_mut(head_dim * head_dim);
        let (centre, rest) = rest.split_at_mut(head_dim);
        let (vector, rest) = rest.split_at_mut(head_dim);
        Self {
            matrix,
            centre,
            vector,
            product: &mut rest[..head_dim],
        }
    }

    fn weigh(&mut self, key: &[f32]) {
        for ((x, key), centre) in self.vector.iter_mut().zip(key).zip(&*self.centre) {
            *x = key - centre;
        }
        for (product, row) in self
            .product
            .iter_mut()
            .zip(self.matrix.chunks_exact(self.vector.len()))
        {
            *product = dot(row, self.vector);
        }
    }
}

/// Moments of the queries over sqrt(head_dim), in [`LayerPlan::moment_floats`].
struct Moments<'m> {
    head_dim: usize,
    /// C, the mean products: the lower triangle.
    second: &'m mut [f64],
    mean: &'m mut [f64],
    vector: &'m mut [f64],
}

impl<'m> Moments<'m> {
    fn over(memory: &'m mut [f64], head_dim: usize) -> Self {
        let (second, rest) = memory.split_at_mut(head_dim * head_dim);
        let (mean, rest) = rest.split_at_mut(head_dim);
        Self {
            head_dim,
            second,
            mean,
            vector: &mut rest[..head_dim],
        }
    }

    fn fill(&mut self, queries: Asked<'_>) {
        let n = self.head_dim;
        let scale = 1.0 / (n as f64).sqrt();
        match queries {
            Asked::Queries(queries) => {
                self.second.fill(0.0);
                self.mean.fill(0.0);
                for row in queries.chunks_exact(n) {
                    let query = &mut *self.vector;
                    for (x, &element) in query.iter_mut().zip(row) {
                        *x = f64::from(element) * scale;
                    }
                    for (index, &x) in query.iter().enumerate() {
                        self.mean[index] += x;
                        let row = &mut self.second[index * n..][..index + 1];
                        row.iter_mut().zip(&*query).for_each(|(sum, y)| *sum += x * y);
                    }
                }
                let count = (queries.len() / n) as f64;
                self.mean.iter_mut().for_each(|x| *x /= count);
                self.second.iter_mut().for_each(|x| *x /= count);
            }
            Asked::Moments(given) => {
                let (first, second) = given.split_at(n);
                let means = self.mean.iter_mut().zip(first);
                means.for_each(|(x, &y)| *x = f64::from(y) * scale);
                let products = self.second.iter_mut().zip(second);
                products.for_each(|(x, &y)| *x = f64::from(y) * scale * scale);
            }
        }
    }

    /// S + 0.1 tr(S) / head_dim I, `[head_dim, head_dim]`, with S = C - mu mu^T: what makes of the difference of two keys the
    /// variance of the difference of their logits, and a little for what the queries do not show.
    fn covariance(&self, to: &mut [f32]) {
        let n = self.head_dim;
        let of = |i: usize, j: usize| self.second[i * n + j] - self.mean[i] * self.mean[j];
        let ridge = RIDGE * (0..n).map(|i| of(i, i)).sum::<f64>() / n as f64;
        for i in 0..n {
            for j in 0..=i {
                let x = of(i, j) + if i == j { ridge } else { 0.0 };
                (to[i * n + j], to[j * n + i]) = (x as f32, x as f32);
            }
        }
    }

    /// The mean of `keys`, `[count, head_dim]`.
    fn mean_of(&mut self, keys: &[f32], to: &mut [f32]) {
        let sums = &mut *self.vector;
        sums.fill(0.0);
        for key in keys.chunks_exact(self.head_dim) {
            sums.iter_mut()
                .zip(key)
                .for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let count = (keys.len() / self.head_dim).max(1) as f64;
        to.iter_mut()
            .zip(&*sums)
            .for_each(|(to, sum)| *to = (sum / count) as f32);
    }

    /// u = (C + ridge I)^-1 mu, and mu . u: what one u in a key adds to the expected logit. 0 if there is no such
    /// direction. C is gone then.
    fn direction(&mut self) -> (&[f64], f64) {
        let n = self.head_dim;
        let trace: f64 = (0..n).map(|i| self.second[i * n + i]).sum();
        for i in 0..n {
            self.second[i * n + i] += RIDGE * trace / n as f64;
        }
        let solution = &mut *self.vector;
        solution.copy_from_slice(self.mean);
        let solved = solve(self.second, solution);
        let rise: f64 = self.mean.iter().zip(&*solution).map(|(x, u)| x * u).sum();
        if !solved || !rise.is_normal() || !solution.iter().all(|&u| (u as f32).is_finite()) {
            solution.fill(0.0);
            return (solution, 0.0);
        }
        (solution, rise)
    }
}

/// Solves `matrix x = right` for a symmetric positive definite matrix, of which the lower triangle is given
/// and overwritten (Cholesky); `x` takes the place of `right`. False if it is not such a matrix.
fn solve(matrix: &mut [f64], right: &mut [f64]) -> bool {
    let n = right.len();
    for i in 0..n {
        for j in 0..=i {
            let (head, tail) = matrix.split_at(i * n);
            let row_j = if j == i {
                &tail[..j]
            } else {
                &head[j * n..j * n + j]
            };
            let sum: f64 = tail[..j].iter().zip(row_j).map(|(x, y)| x * y).sum();
            let rest = tail[j] - sum;
            matrix[i * n + j] = if j < i {
                rest / matrix[j * n + j]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return false;
            };
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|j| matrix[i * n + j] * right[j]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|j| matrix[j * n + i] * right[j]).sum();
        right[i] = (right[i] - sum) / matrix[i * n + i];
    }
    true
}
