//! The queries that a policy looks back with.

/// The rotated queries of the newest generated tokens of one layer: a ring of `tokens` rows of
/// `[num_heads][head_dim]`, where generated token g lies in row g mod `tokens`.
#[derive(Default, Clone)]
pub(crate) struct QueryWindow {
    rows: Vec<f32>,
    tokens: usize,
    /// The frequencies that they are rotated with, `[head_dim / 2]`: as the last step had them.
    frequencies: Vec<f32>,
    /// For each KV head the moments of the queries since the last compression, as
    /// [`add_moments`](reasoning_rpc_cpu::add_moments) sums them up; empty if the policy wants none.
    moments: Vec<f32>,
}

impl QueryWindow {
    /// For so many tokens of `query_width` numbers each, and so many numbers of moments.
    pub(super) fn new(tokens: usize, query_width: usize, moments: usize) -> Self {
        Self {
            rows: vec![0.0; tokens * query_width],
            tokens,
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

    /// The ring as it lies, row after row.
    pub(crate) fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// The ring, to fill.
    pub(crate) fn rows_mut(&mut self) -> &mut [f32] {
        &mut self.rows
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
            let row = generated % self.tokens * queries.len();
            self.rows[row..row + queries.len()].copy_from_slice(queries);
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
        let width = self.rows.len().checked_div(self.tokens).unwrap_or(0);
        for generated in generated {
            let row = &self.rows[generated % self.tokens * width..][..width];
            out.extend_from_slice(&row[heads.start * head_dim..heads.end * head_dim]);
        }
    }
}
