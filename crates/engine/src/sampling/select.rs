//! From logits to the tokens that are kept, without sorting the vocabulary.

use std::cmp::Ordering;

use super::SamplingOptions;
use super::exp::{exp, exp_f32};
use crate::error::{Error, Result};

/// Logits are read in pieces of this many.
const CHUNK: usize = 64;
/// Top-p first looks at tokens down to e^-4 of the most probable one, then twice as deep, and so on.
const FIRST_DEPTH: f64 = 4.0;
/// No token this deep has a probability above 0.
const LAST_DEPTH: f64 = 701.0;
/// Into how many steps of the score weights are summed.
const STEPS: usize = 256;

/// A token that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit, after the repetition penalty.
    pub score: f32,
    /// Its probability among those kept.
    pub probability: f64,
}

/// Logits under a repetition penalty, which is applied while they are read.
pub(super) struct Logits<'a> {
    values: &'a [f32],
    penalty: f32,
    /// Sorted, each once.
    seen: &'a [u32],
}

impl<'a> Logits<'a> {
    pub(super) fn new(values: &'a [f32], penalty: f32, seen: &'a [u32]) -> Self {
        Self {
            values,
            penalty,
            seen: if penalty == 1.0 { &[] } else { seen },
        }
    }

    /// Hands out the scores in pieces of `CHUNK`, with the first one's id.
    fn each(&self, mut visit: impl FnMut(u32, &[f32])) {
        let mut seen = self.seen;
        let mut room = [0.0; CHUNK];
        for (index, chunk) in self.values.chunks(CHUNK).enumerate() {
            let base = index * CHUNK;
            let here = seen
                .iter()
                .take_while(|id| (**id as usize) < base + chunk.len())
                .count();
            let (now, later) = seen.split_at(here);
            seen = later;
            visit(base as u32, self.penalised(base, chunk, now, &mut room));
        }
    }

    /// The piece with this index.
    fn chunk<'r>(&'r self, index: usize, room: &'r mut [f32; CHUNK]) -> &'r [f32] {
        let base = index * CHUNK;
        let chunk = self.values.chunks(CHUNK).nth(index).unwrap_or_default();
        let place = |id: usize| self.seen.partition_point(|seen| (*seen as usize) < id);
        self.penalised(
            base,
            chunk,
            &self.seen[place(base)..place(base + chunk.len())],
            room,
        )
    }

    fn penalised<'r>(
        &self,
        base: usize,
        chunk: &'r [f32],
        seen: &[u32],
        room: &'r mut [f32; CHUNK],
    ) -> &'r [f32] {
        if seen.is_empty() {
            return chunk;
        }
        let room = &mut room[..chunk.len()];
        room.copy_from_slice(chunk);
        for id in seen {
            let score = &mut room[*id as usize - base];
            *score = if *score < 0.0 {
                *score * self.penalty
            } else {
                *score / self.penalty
            };
        }
        room
    }

    /// The token with the highest score, the lowest id among equals.
    pub(super) fn best(&self) -> Result<Candidate> {
        let mut best = Candidate {
            id: 0,
            score: f32::NEG_INFINITY,
            probability: 1.0,
        };
        let mut broken = None;
        self.each(|base, chunk| {
            let (highest, regular) = highest(chunk);
            if !regular {
                let irregular = |score: &f32| score.is_nan() || *score == f32::INFINITY;
                broken = broken.or_else(|| {
                    let place = chunk.iter().position(irregular)?;
                    Some((base + place as u32, chunk[place]))
                });
            } else if highest > best.score
                && let Some(place) = chunk.iter().position(|score| *score == highest)
            {
                best.id = base + place as u32;
                best.score = highest;
            }
        });
        if let Some((id, score)) = broken {
            return Err(Error::Model(format!(
                "the logit of token {id} is {score}, expected a number or minus infinity"
            )));
        }
        if best.score == f32::NEG_INFINITY {
            return Err(Error::Model(format!(
                "none of {} logits is above minus infinity, expected at least one",
                self.values.len()
            )));
        }
        Ok(best)
    }
}

/// The highest score, and whether all are numbers or minus infinity.
fn highest(chunk: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut irregular = [0u32; 16];
    let mut take = |lane: usize, score: f32| {
        lanes[lane] = if score > lanes[lane] { score } else { lanes[lane] };
        irregular[lane] |= u32::from(score.is_nan()) | u32::from(score == f32::INFINITY);
    };
    let mut parts = chunk.chunks_exact(16);
    for part in &mut parts {
        for (lane, score) in part.iter().enumerate() {
            take(lane, *score);
        }
    }
    for (lane, score) in parts.remainder().iter().enumerate() {
        take(lane, *score);
    }
    let highest = lanes
        .iter()
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    (highest, irregular.iter().all(|lane| *lane == 0))
}

/// The weight of a score: its probability times the sum of all weights. The best score's is 1.
#[derive(Clone, Copy, Debug)]
struct Scale {
    best: f64,
    inverse_temperature: f64,
}

impl Scale {
    /// The lowest score that is worth `depth` or less below the best.
    fn floor(&self, depth: f64) -> f32 {
        (self.best - depth / self.inverse_temperature) as f32
    }

    /// The weights of a piece.
    fn weigh(&self, scores: &[f32], weights: &mut [f64; CHUNK]) {
        for (weight, score) in weights.iter_mut().zip(scores) {
            *weight = exp((f64::from(*score) - self.best) * self.inverse_temperature);
        }
    }

    /// The sum of a piece's weights, to about six digits.
    fn sum(&self, chunk: &[f32]) -> f64 {
        let best = self.best as f32;
        let inverse_temperature = (self.inverse_temperature as f32).min(f32::MAX);
        let mut weights = [0.0; CHUNK];
        for (weight, score) in weights.iter_mut().zip(chunk) {
            *weight = exp_f32((score - best) * inverse_temperature);
        }
        let mut lanes = [0.0f32; 8];
        for part in weights.chunks_exact(8) {
            for (lane, weight) in lanes.iter_mut().zip(part) {
                *lane += weight;
            }
        }
        f64::from(lanes.iter().sum::<f32>())
    }
}

/// Memory that is used anew for every token, and between choosing what to keep and drawing.
#[derive(Debug)]
pub(super) struct Scratch {
    scale: Scale,
    best: u32,
    /// The tokens kept, by id, with weights in place of probabilities; unless all are.
    kept: Vec<Candidate>,
    all_kept: bool,
    /// If all are kept, the weight of each piece.
    sums: Vec<f64>,
    scores: Vec<f32>,
    order: Vec<Candidate>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            scale: Scale {
                best: 0.0,
                inverse_temperature: 1.0,
            },
            best: 0,
            kept: Vec::new(),
            all_kept: false,
            sums: Vec::new(),
            scores: Vec::new(),
            order: Vec::new(),
        }
    }
}

impl Clone for Scratch {
    /// Nothing in it outlives a token.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Scratch {
    /// Chooses the tokens to keep; the sum of their weights.
    pub(super) fn keep(&mut self, logits: &Logits<'_>, options: &SamplingOptions, best: Candidate) -> f64 {
        self.scale = Scale {
            best: f64::from(best.score),
            inverse_temperature: 1.0 / f64::from(options.temperature),
        };
        self.best = best.id;
        self.all_kept = false;
        let (top_k, top_p, min_p) = (
            options.top_k as usize,
            f64::from(options.top_p),
            f64::from(options.min_p),
        );
        if (1..logits.values.len()).contains(&top_k) {
            let floor = self.kth(logits, top_k);
            self.gather(logits, floor);
            if top_p < 1.0 {
                let total = self.total();
                self.cut(top_p * total);
            }
        } else if top_p < 1.0 {
            let mut total = 0.0;
            logits.each(|_, chunk| total += self.scale.sum(chunk));
            let target = top_p * total;
            let mut depth = FIRST_DEPTH;
            loop {
                self.gather(logits, self.scale.floor(depth));
                if self.total() > target || depth > LAST_DEPTH {
                    break;
                }
                depth *= 2.0;
            }
            self.cut(target);
        } else if min_p > 0.0 {
            // A little deeper than needed; the exact bound is on the weights.
            self.gather(logits, self.scale.floor(1e-3 - min_p.ln()));
        } else {
            self.all_kept = true;
            let Self { sums, scale, .. } = self;
            sums.clear();
            logits.each(|_, chunk| sums.push(scale.sum(chunk)));
            return sums.iter().sum();
        }
        if min_p > 0.0 {
            self.kept.retain(|token| token.probability >= min_p);
        }
        self.total()
    }

    /// The token at which the weights, added up in order, first exceed `target`.
    pub(super) fn choose(&self, logits: &Logits<'_>, target: f64) -> u32 {
        let mut sum = 0.0;
        if !self.all_kept {
            let at = self.kept.iter().find(|token| {
                sum += token.probability;
                sum > target
            });
            return at.map_or(self.best, |token| token.id);
        }
        let mut room = [0.0; CHUNK];
        let mut weights = [0.0; CHUNK];
        for (index, weight) in self.sums.iter().enumerate() {
            if sum + weight <= target {
                sum += weight;
                continue;
            }
            let chunk = logits.chunk(index, &mut room);
            self.scale.weigh(chunk, &mut weights);
            let exact: f64 = weights[..chunk.len()].iter().sum();
            let target = (target - sum) / weight * exact;
            let mut sum = 0.0;
            let at = weights[..chunk.len()].iter().position(|weight| {
                sum += weight;
                sum > target
            });
            return at.map_or(self.best, |place| (index * CHUNK + place) as u32);
        }
        // Rounding kept the sum from reaching the target.
        self.best
    }

    /// Everything that was kept, the most probable first, with probabilities.
    pub(super) fn all(&mut self, logits: &Logits<'_>) -> Vec<Candidate> {
        if self.all_kept {
            self.gather(logits, f32::NEG_INFINITY);
        }
        let total = self.total();
        let probable = |token: &Candidate| Candidate {
            probability: token.probability / total,
            ..*token
        };
        let mut all: Vec<Candidate> = self.kept.iter().map(probable).collect();
        all.sort_unstable_by(rank);
        all
    }

    /// The `k`th highest score; minus infinity if fewer are above that.
    fn kth(&mut self, logits: &Logits<'_>, k: usize) -> f32 {
        let scores = &mut self.scores;
        scores.clear();
        let mut floor = f32::NEG_INFINITY;
        let select = |scores: &mut Vec<f32>| {
            let (_, kth, _) = scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            let kth = *kth;
            scores.truncate(k);
            kth
        };
        logits.each(|_, chunk| {
            if !any_above(chunk, floor) {
                return;
            }
            scores.extend(chunk.iter().filter(|score| **score > floor));
            if scores.len() > 2 * k + 16 * CHUNK {
                floor = select(scores);
            }
        });
        if scores.len() < k {
            f32::NEG_INFINITY
        } else {
            select(scores)
        }
    }

    /// Keeps the tokens whose score is `floor` or more, in the order of their ids.
    fn gather(&mut self, logits: &Logits<'_>, floor: f32) {
        let Self { kept, scale, .. } = self;
        kept.clear();
        let below = floor.next_down();
        let mut room = [Candidate::default(); CHUNK];
        logits.each(|base, chunk| {
            if !any_above(chunk, below) {
                return;
            }
            // No branch: which scores are above is anybody's guess.
            let mut count = 0;
            for (id, &score) in (base..).zip(chunk) {
                let probability = 0.0;
                room[count] = Candidate {
                    id,
                    score,
                    probability,
                };
                count += usize::from(score > below);
            }
            kept.extend_from_slice(&room[..count]);
        });
        let (mut scores, mut weights) = ([0.0; CHUNK], [0.0; CHUNK]);
        for tokens in kept.chunks_mut(CHUNK) {
            for (score, token) in scores.iter_mut().zip(&*tokens) {
                *score = token.score;
            }
            scale.weigh(&scores[..tokens.len()], &mut weights);
            for (token, weight) in tokens.iter_mut().zip(&weights) {
                token.probability = *weight;
            }
        }
    }

    fn total(&self) -> f64 {
        self.kept.iter().map(|token| token.probability).sum()
    }

    /// Keeps the tokens before which, in order of probability, the weights do not reach `target`; the
    /// first in any case.
    fn cut(&mut self, target: f64) {
        let Self {
            kept, order, scale, ..
        } = self;
        // Weights by score in even steps; only the tokens of the step where the target is reached are sorted.
        let drop = |token: &Candidate| scale.best - f64::from(token.score);
        let widest = kept.iter().map(drop).fold(f64::MIN_POSITIVE, f64::max);
        let per_step = (STEPS - 1) as f64 / widest;
        let step = |token: &Candidate| ((drop(token) * per_step) as usize).min(STEPS - 1);
        let mut steps = [0.0; STEPS];
        for token in kept.iter() {
            steps[step(token)] += token.probability;
        }
        let mut before = 0.0;
        let reached = steps.iter().position(|weight| {
            let reached = before + weight >= target;
            before += if reached { 0.0 } else { *weight };
            reached
        });
        let Some(reached) = reached else {
            return;
        };
        order.clear();
        order.extend(kept.iter().filter(|token| step(token) == reached));
        order.sort_unstable_by(rank);
        let over = |token: &&Candidate| {
            before += token.probability;
            before >= target
        };
        if let Some(last) = order.iter().find(over).or(order.last()) {
            kept.retain(|token| rank(token, last).is_le());
        }
    }
}

/// The most probable token first, and of equally probable ones the lowest id.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    // There is no NaN; the two zeros are equal.
    let falling = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
    falling.then(a.id.cmp(&b.id))
}

/// Whether some score is above `floor`.
fn any_above(chunk: &[f32], floor: f32) -> bool {
    let mut parts = chunk.chunks_exact(16);
    let mut above = 0;
    for part in &mut parts {
        for score in part {
            above |= u32::from(*score > floor);
        }
    }
    above != 0 || parts.remainder().iter().any(|score| *score > floor)
}
