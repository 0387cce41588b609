//! How much a text repeats itself: entropy and redundancy of its token n-grams, of the whole and of what a policy kept.

use std::collections::{HashMap, HashSet};

use reasoning_rpc_engine::CompressionRecord;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Lengths of the n-grams whose entropy is reported.
pub const ENTROPY_LENGTHS: [usize; 3] = [1, 2, 3];
/// Lengths of the n-grams whose redundancy is reported.
pub const REDUNDANCY_LENGTHS: [usize; 3] = [1, 2, 4];

/// Shannon entropy of the token n-grams of a text, `-sum p log2 p` over their frequencies, in bits; 0 without any.
pub fn entropy(tokens: &[u32], n: usize) -> f64 {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for gram in tokens.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let total = tokens.windows(n).len() as f64;
    // In order, so that the sum is the same each time.
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable();
    let terms = counts.into_iter().map(|count| {
        let p = count as f64 / total;
        p * -p.log2()
    });
    // No terms have the sum -0.
    terms.sum::<f64>() + 0.0
}

/// The redundancy of n-grams: `1 - distinct / all`; none without any.
pub fn redundancy(tokens: &[u32], n: usize) -> Option<f64> {
    rate(tokens.windows(n))
}

/// The redundancy of what is left of a text at `positions`, which ascend: its n-grams are runs of `n` consecutive
/// positions.
pub fn redundancy_at(tokens: &[u32], positions: &[u32], n: usize) -> Option<f64> {
    let runs = positions.windows(n).filter(|run| {
        let (first, last) = (run[0] as usize, run[n - 1] as usize);
        last - first == n - 1 && last < tokens.len()
    });
    rate(runs.map(|run| &tokens[run[0] as usize..][..n]))
}

fn rate<'a>(grams: impl Iterator<Item = &'a [u32]>) -> Option<f64> {
    let (mut all, mut distinct) = (0usize, HashSet::new());
    for gram in grams {
        all += 1;
        distinct.insert(gram);
    }
    (all > 0).then(|| 1.0 - distinct.len() as f64 / all as f64)
}

/// A text with what compressions kept of it, as `generate --output json` prints it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Trace {
    /// Tokens that were given.
    pub prompt_ids: Vec<u32>,
    /// Tokens that were generated.
    pub tokens: Vec<u32>,
    /// Compressions of each layer, in order of time.
    pub compressions: Vec<Compression>,
}

/// One compression of one layer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Compression {
    /// Generated tokens in the cache when it ran.
    pub at_token: usize,
    /// The layer.
    pub layer: usize,
    /// Entries of the layer afterwards.
    pub len_after: usize,
    /// Text positions of the candidates that it kept, of the layer or of each KV head.
    pub kept: Vec<Vec<u32>>,
}

impl From<&CompressionRecord> for Compression {
    fn from(record: &CompressionRecord) -> Self {
        Self {
            at_token: record.at_token,
            layer: record.layer,
            len_after: record.len_after,
            kept: record.kept.clone(),
        }
    }
}

/// Redundancy at one compression, the mean over layers and KV heads, for each of [`REDUNDANCY_LENGTHS`]; none where
/// no n-gram of the length was left in any.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    /// Generated tokens in the cache when it ran.
    pub at_token: usize,
    /// Of all generated tokens but the window's.
    pub text: [Option<f64>; 3],
    /// Of what was left of them before it.
    pub candidates: [Option<f64>; 3],
    /// Of what it kept.
    pub kept: [Option<f64>; 3],
}

impl Trace {
    /// Redundancy at each compression.
    ///
    /// # Errors
    /// [`Error::File`] if the compressions do not fit the text.
    pub fn moments(&self) -> Result<Vec<Moment>> {
        let wrong = |what: &str| Error::File(format!("trace: expected {what}"));
        let tokens = [&self.prompt_ids[..], &self.tokens].concat();
        let start = self.prompt_ids.len();
        // What is left of each layer and head, and how many generated tokens had been candidates.
        let mut left: HashMap<(usize, usize), Vec<u32>> = HashMap::new();
        let mut seen: HashMap<usize, usize> = HashMap::new();
        let mut moments: Vec<(Moment, [Mean; 3], [Mean; 3])> = Vec::new();
        for compression in &self.compressions {
            // KV heads may differ in what they keep: the longest is the length.
            let most = compression.kept.iter().map(Vec::len).max();
            let most = most.ok_or_else(|| wrong("kept sets, found none"))?;
            let window = compression.len_after.checked_sub(start + most);
            let end = window.and_then(|window| compression.at_token.checked_sub(window));
            let end = end
                .filter(|&end| start + end <= tokens.len())
                .ok_or_else(|| wrong("compressions of this text, found others"))?;
            let from = seen.insert(compression.layer, end).unwrap_or(0).min(end);
            if moments
                .last()
                .is_none_or(|(last, ..)| last.at_token != compression.at_token)
            {
                let moment = Moment {
                    at_token: compression.at_token,
                    text: REDUNDANCY_LENGTHS.map(|n| redundancy(&tokens[start..start + end], n)),
                    candidates: [None; 3],
                    kept: [None; 3],
                };
                moments.push((moment, Default::default(), Default::default()));
            }
            let Some((_, candidates_mean, kept_mean)) = moments.last_mut() else {
                continue;
            };
            for (head, kept) in compression.kept.iter().enumerate() {
                let positions = left.entry((compression.layer, head)).or_default();
                positions.extend((start + from..start + end).map(|position| position as u32));
                if !kept.is_sorted_by(|a, b| a < b) {
                    return Err(wrong("positions that ascend"));
                }
                for (index, n) in REDUNDANCY_LENGTHS.into_iter().enumerate() {
                    candidates_mean[index].add(redundancy_at(&tokens, positions, n));
                    kept_mean[index].add(redundancy_at(&tokens, kept, n));
                }
                positions.clone_from(kept);
            }
        }
        let mean = |(mut moment, candidates, kept): (Moment, [Mean; 3], [Mean; 3])| {
            moment.candidates = candidates.map(Mean::value);
            moment.kept = kept.map(Mean::value);
            moment
        };
        Ok(moments.into_iter().map(mean).collect())
    }
}

/// The mean of the values that there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    /// Adds one, if there is one.
    pub fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1;
        }
    }

    /// The mean; none of none.
    pub fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_of_known_texts() {
        assert_eq!(entropy(&[1, 2, 3, 4, 5, 6, 7, 8], 1), 3.0);
        assert_eq!(entropy(&[7; 9], 2), 0.0);
        // 1/2, 1/4, 1/4
        assert_eq!(entropy(&[1, 2, 1, 3], 1), 1.5);
        // (1 2), (2 1), (1 2), (2 1): two of four each; (1 2 1), (2 1 2), (1 2 1).
        let text = [1, 2, 1, 2, 1];
        assert_eq!(entropy(&text, 2), 1.0);
        let thirds = -(2.0 / 3.0f64 * (2.0 / 3.0f64).log2() + 1.0 / 3.0f64 * (1.0 / 3.0f64).log2());
        assert!((entropy(&text, 3) - thirds).abs() < 1e-12);
        assert_eq!(entropy(&[1], 2), 0.0);
    }

    #[test]
    fn redundancies_of_known_texts() {
        assert_eq!(redundancy(&[1, 2, 3], 1), Some(0.0));
        assert_eq!(redundancy(&[1, 1, 1, 1], 1), Some(0.75));
        assert_eq!(redundancy(&[1, 2, 1, 2, 1], 2), Some(0.5));
        assert_eq!(redundancy(&[1, 2], 4), None);
        // Positions 0, 1 and 3, 4 are runs; 1 and 3 are not.
        let text = [1, 2, 9, 1, 2, 5];
        assert_eq!(redundancy_at(&text, &[0, 1, 3, 4], 2), Some(0.5));
        assert_eq!(redundancy_at(&text, &[0, 1, 3, 4], 1), Some(0.5));
        assert_eq!(redundancy_at(&text, &[0, 2, 4], 2), None);
        assert_eq!(redundancy_at(&text, &[0, 1, 2, 3, 4, 5], 2), redundancy(&text, 2));
    }

    #[test]
    fn candidates_are_what_was_kept_and_what_came_since() {
        // A prompt of 2, a window of 1: at 5 generated tokens 4 are candidates, at 9 those kept and 4 more.
        let compression = |at_token, kept: &[u32]| Compression {
            at_token,
            layer: 0,
            len_after: 2 + kept.len() + 1,
            kept: vec![kept.to_vec()],
        };
        let trace = Trace {
            prompt_ids: vec![50, 51],
            tokens: vec![1, 1, 2, 2, 3, 3, 4, 1, 9],
            compressions: vec![compression(5, &[2, 4]), compression(9, &[2, 4, 6, 9])],
        };
        let moments = trace.moments().unwrap();
        assert_eq!(moments.len(), 2);
        assert_eq!((moments[0].at_token, moments[1].at_token), (5, 9));
        // 1 1 2 2, of which 1 2 stay.
        assert_eq!(moments[0].text[0], Some(0.5));
        assert_eq!(moments[0].candidates[0], Some(0.5));
        assert_eq!(moments[0].kept[0], Some(0.0));
        assert_eq!(moments[0].kept[1], None);
        // 1 1 2 2 3 3 4 1 in all; 1 2 and 3 3 4 1 are candidates; 1 2 3 1 stay.
        assert_eq!(moments[1].text[0], Some(0.5));
        assert_eq!(moments[1].candidates[0], Some(1.0 - 4.0 / 6.0));
        assert_eq!(moments[1].kept[0], Some(0.25));
        let mut broken = trace.clone();
        broken.tokens.truncate(4);
        assert!(broken.moments().is_err());
        broken.compressions[0].kept.clear();
        assert!(
            broken
                .moments()
                .unwrap_err()
                .to_string()
                .contains("kept sets, found none")
        );
    }
}
