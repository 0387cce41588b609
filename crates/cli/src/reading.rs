//! Reading a text as if the model had written it: what was predicted at each token.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Context;
use reasoning_rpc_engine::core::{Policy, Trigger};
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, Sequence, SequenceOptions};

/// Tokens of a step: their logits, `vocab` floats each, are in memory at once.
pub const CHUNK: usize = 128;

/// What is predicted behind the tokens of a piece of the text.
#[derive(Clone, Default)]
pub struct Predictions {
    vocab: usize,
    /// `vocab` for each prediction.
    logits: Vec<f32>,
    /// The logarithm of the sum of its logits' exponentials, of each prediction.
    sums: Vec<f64>,
    /// `vocab` for each prediction, once filled.
    probabilities: Vec<f64>,
}

impl Predictions {
    pub fn clear(&mut self, vocab: usize) {
        self.vocab = vocab;
        self.logits.clear();
        self.sums.clear();
    }

    /// Takes the logits of another prediction, and gives -log p of what followed.
    pub fn add(&mut self, logits: &[f32], id: u32) -> f64 {
        let sum = log_sum_exp(logits);
        self.logits.extend_from_slice(logits);
        self.sums.push(sum);
        sum - f64::from(logits[id as usize])
    }

    pub fn fill_probabilities(&mut self) {
        self.probabilities.clear();
        for (logits, sum) in self.logits.chunks_exact(self.vocab).zip(&self.sums) {
            let shares = logits.iter().map(|&logit| (f64::from(logit) - sum).exp());
            self.probabilities.extend(shares);
        }
    }

    /// KL(self || other) of each prediction, in nats: sum p (log p - log q), log p being logit - sum.
    pub fn divergences(&self, other: &Self) -> impl Iterator<Item = f64> {
        let shares = self.probabilities.chunks_exact(self.vocab);
        let logits = self
            .logits
            .chunks_exact(self.vocab)
            .zip(other.logits.chunks_exact(self.vocab));
        let sums = self.sums.iter().zip(&other.sums);
        shares
            .zip(logits)
            .zip(sums)
            .map(|((shares, (logits, others)), (sum, other_sum))| {
                let apart = other_sum - sum;
                let terms = shares.iter().zip(logits).zip(others);
                terms
                    .map(|((p, &one), &other)| p * (f64::from(one) - f64::from(other) + apart))
                    .sum()
            })
    }
}

/// A sequence that reads the text.
pub struct Reader {
    pub sequence: Sequence,
    /// Whether an entry goes at every token, so that no step can run several.
    pub rolling: bool,
    /// Tokens of the text that were run.
    pub done: usize,
    prompt_tokens: usize,
    /// Positions of the tokens not run yet behind which the text goes on: not those that the policy has follow one.
    ends: VecDeque<usize>,
    step: Vec<f32>,
    pub nll: Vec<f64>,
    pub kl: Vec<f64>,
}

impl Reader {
    pub fn new(
        engine: &Engine,
        policy: Arc<dyn Policy>,
        ids: &[u32],
        prompt_tokens: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let following: usize = ids[prompt_tokens..ids.len() - 1]
            .iter()
            .map(|&id| policy.follow(id).len())
            .sum();
        let context = engine.model().manifest().dimensions.max_positions;
        if following > 0 && ids.len() + following > context {
            anyhow::bail!(
                "expected a text that fits the context of {context} tokens with the {following} that follow its \
                 thoughts, found {} tokens: --max-tokens shortens it",
                ids.len()
            );
        }
        let rolling = matches!(policy.spec().trigger, Trigger::EveryToken(_));
        let mut sequence = engine.sequence(SequenceOptions {
            policy,
            sampling: SamplingOptions {
                seed,
                ..SamplingOptions::GREEDY
            },
            record_kept: false,
        })?;
        sequence.append_tokens(&ids[..prompt_tokens])?;
        sequence.reserve(ids.len() - prompt_tokens + following)?;
        Ok(Self {
            sequence,
            rolling,
            done: 0,
            prompt_tokens,
            // The prompt's last token predicts the first behind it.
            ends: VecDeque::from([prompt_tokens - 1]),
            step: Vec::new(),
            nll: Vec::new(),
            kl: Vec::new(),
        })
    }

    /// Runs the prompt, or the next tokens behind it. False at the end: the last token predicts nothing.
    pub fn read(
        &mut self,
        engine: &Engine,
        ids: &[u32],
        predictions: &mut Predictions,
    ) -> anyhow::Result<bool> {
        let vocab = engine.model().manifest().dimensions.vocab_size;
        let end = (self.done + CHUNK).min(ids.len() - 1);
        let end = match self.done {
            0 => self.prompt_tokens,
            done if done >= end => return Ok(false),
            done => {
                for &id in &ids[done..end] {
                    self.sequence.accept(id)?;
                    self.ends.push_back(self.sequence.tokens().len() - 1);
                }
                end
            }
        };
        predictions.clear(vocab);
        while self.sequence.pending() > 0 {
            let positions = engine.step_with_logits(&mut self.sequence, &mut self.step)?;
            for (position, row) in positions.zip(self.step.chunks_exact(vocab)) {
                if self.ends.front() == Some(&position) {
                    self.ends.pop_front();
                    let predicted = ids[self.prompt_tokens + self.nll.len()];
                    self.nll.push(predictions.add(row, predicted));
                }
            }
        }
        self.done = end;
        Ok(true)
    }
}

/// [`Reader::read`] of several at once, a token at a time: those that cannot take more in a step share the
/// passes over the weights.
pub fn read_together(
    readers: &mut [&mut Reader],
    engine: &Engine,
    ids: &[u32],
    predictions: &mut [Predictions],
) -> anyhow::Result<bool> {
    let done = readers.first().map_or(0, |reader| reader.done);
    if done == 0 {
        for (reader, predictions) in readers.iter_mut().zip(predictions) {
            reader.read(engine, ids, predictions)?;
        }
        return Ok(true);
    }
    let vocab = engine.model().manifest().dimensions.vocab_size;
    predictions
        .iter_mut()
        .for_each(|predictions| predictions.clear(vocab));
    let end = (done + CHUNK).min(ids.len() - 1);
    for position in done..end {
        for reader in &mut *readers {
            reader.sequence.accept(ids[position])?;
        }
        let mut sequences: Vec<&mut Sequence> =
            readers.iter_mut().map(|reader| &mut reader.sequence).collect();
        engine.step(&mut sequences)?;
        for (reader, predictions) in readers.iter_mut().zip(&mut *predictions) {
            let logits = reader
                .sequence
                .logits()
                .context("a step at the end of a text gave no logits")?;
            reader.nll.push(predictions.add(logits, ids[position + 1]));
        }
    }
    for reader in &mut *readers {
        reader.done = end;
    }
    Ok(done < end)
}

/// The logarithm of the sum of the exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    largest + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_none_of_equals_and_known_of_two() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} {b}");
        let predictions = |rows: &[&[f32]]| {
            let mut all = Predictions::default();
            all.clear(rows[0].len());
            let nll: Vec<f64> = rows.iter().map(|row| all.add(row, 1)).collect();
            all.fill_probabilities();
            (all, nll)
        };
        let (one, _) = predictions(&[&[1.0, -2.0, 80.0]]);
        let (shifted, _) = predictions(&[&[11.0, 8.0, 90.0]]);
        near(one.divergences(&shifted).sum(), 0.0);
        // p = (1/2, 1/2), q = (1/4, 3/4), and the other way round.
        let (p, q) = ([7.0, 7.0], [0.0, 3.0f32.ln()]);
        let (pq, nll) = predictions(&[&p, &q]);
        let (qp, _) = predictions(&[&q, &p]);
        let found: Vec<f64> = pq.divergences(&qp).collect();
        near(found[0], 0.5 * 2.0f64.ln() + 0.5 * (2.0f64 / 3.0).ln());
        near(found[1], 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln());
        near(nll[1], -0.75f64.ln());
    }
}
