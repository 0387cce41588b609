//! The queries that a policy looks back with.

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use reasoning_rpc_cpu::Element;

/// Rows of queries.
#[derive(Clone)]
enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Default for Rows {
    fn default() -> Self {
        Self::F32(Vec::new())
    }
}

/// The rotated queries of the newest generated tokens of one layer: a ring of `tokens` rows of
/// `[num_heads][head_dim]`, where generated token g lies in row g mod `tokens`.
#[derive(Default, Clone)]
pub(crate) struct QueryWindow {
    rows: Rows,
    tokens: usize,
    /// Numbers of a row.
    width: usize,
    /// The frequencies that they are rotated with, `[head_dim / 2]`: as the last step had them.
    frequencies: Vec<f32>,
    /// For each KV head the moments of the queries since the last compression, as
    /// [`add_moments`](reasoning_rpc_cpu::add_moments) sums them up; empty if the policy wants none.
    moments: Vec<f32>,
}

impl QueryWindow {
    /// For so many tokens of `query_width` numbers each, in fp16 if `half`, and so many numbers of moments.
    pub(super) fn new(tokens: usize, query_width: usize, half: bool, moments: usize) -> Self {
        let numbers = tokens * query_width;
        Self {
            rows: match half {
                // Zeros of `u16` are the system's: their memory is taken as it is written.
                true => Rows::F16(vec![0u16; numbers].reinterpret_into()),
                false => Rows::F32(vec![0.0; numbers]),
            },
            tokens,
            width: query_width,
            frequencies: Vec::new(),
            moments: vec![0.0; moments],
        }
    }

    /// The moments of all KV heads.
    pub(crate) fn moments(&self) -> &[f32] {
        &self.moments
    }

    /// The moments, to change.
    pub(crate) fn moments_mut(&mut self) -> &mut [f32] {
        &mut self.moments
    }

    /// The ring, row after row.
    pub(crate) fn rows(&self) -> Cow<'_, [f32]> {
        match &self.rows {
            Rows::F32(rows) => Cow::Borrowed(rows),
            Rows::F16(rows) => Cow::Owned(rows.to_f32_vec()),
        }
    }

    /// How many numbers [`rows`](Self::rows) has.
    pub(crate) fn numbers(&self) -> usize {
        self.tokens * self.width
    }

    /// Fills the ring with as many numbers.
    pub(crate) fn fill(&mut self, numbers: &[f32]) {
        self.write(0, numbers);
    }

    fn write(&mut self, at: usize, numbers: &[f32]) {
        match &mut self.rows {
            Rows::F32(rows) => rows[at..at + numbers.len()].copy_from_slice(numbers),
            Rows::F16(rows) => {
                let places = rows[at..at + numbers.len()].iter_mut();
                places
                    .zip(numbers)
                    .for_each(|(place, &x)| *place = <f16 as Element>::from_f32(x));
            }
        }
    }

    /// Tokens whose queries are remembered.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The frequencies of the rotation; empty if no step has recorded.
    pub(crate) fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Remembers the frequencies of the rotation.
    pub(crate) fn set_frequencies(&mut self, frequencies: &[f32]) {
        if self.tokens > 0 && self.frequencies != frequencies {
            self.frequencies = frequencies.to_vec();
        }
    }

    /// Records the queries of generated token `generated` (counted from 0).
    pub(crate) fn record(&mut self, generated: usize, queries: &[f32]) {
        if self.tokens > 0 {
            self.write(generated % self.tokens * self.width, queries);
        }
    }

    /// The query heads `heads` (of `head_dim` elements each) of some generated tokens, of which none is further
    /// back than `tokens`, `[tokens][heads][head_dim]`, appended to `out`.
    pub(crate) fn gather(
        &self,
        generated: std::ops::Range<usize>,
        heads: std::ops::Range<usize>,
        head_dim: usize,
        out: &mut Vec<f32>,
    ) {
        for generated in generated {
            let row = generated % self.tokens * self.width;
            let row = row + heads.start * head_dim..row + heads.end * head_dim;
            match &self.rows {
                Rows::F32(rows) => out.extend_from_slice(&rows[row]),
                Rows::F16(rows) => {
                    let begin = out.len();
                    out.resize(begin + row.len(), 0.0);
                    rows[row].convert_to_f32_slice(&mut out[begin..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reasoning_rpc_test_support::{Random, seed};

    /// What is gathered is what was recorded, in fp16 but for half a step of it; tests of policies read queries from here.
    #[test]
    fn gives_back_what_was_recorded() {
        let mut random = Random::new(seed());
        for half in [false, true] {
            let mut window = QueryWindow::new(3, 4 * 8, half, 0);
            let mut number = || (random.below(20_001) as f32 - 10_000.0) / 777.0;
            let rows: Vec<Vec<f32>> = (0..5).map(|_| (0..4 * 8).map(|_| number()).collect()).collect();
            for (generated, row) in rows.iter().enumerate() {
                window.record(generated, row);
            }
            let mut found = Vec::new();
            window.gather(2..5, 1..3, 8, &mut found);
            let expected = rows[2..].iter().flat_map(|row| &row[8..24]);
            assert_eq!(found.len(), 3 * 16);
            for (found, expected) in found.iter().zip(expected) {
                let step = if half { expected.abs() / 2048.0 } else { 0.0 };
                assert!((found - expected).abs() <= step, "{found} for {expected}");
            }
            let mut copy = QueryWindow::new(3, 4 * 8, half, 0);
            copy.fill(&window.rows());
            assert_eq!(copy.rows(), window.rows());
        }
        // Beyond its range fp16 has its largest number, not infinity.
        let mut window = QueryWindow::new(1, 8, true, 0);
        window.record(0, &[1e6; 8]);
        assert_eq!(window.rows()[0], 65504.0);
    }
}
