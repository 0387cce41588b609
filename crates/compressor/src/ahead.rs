//! Plans of policies that look ahead: by the queries of a whole interval, rotated on by an interval, by histories
//! that lie beside the cache, and by keys.

use half::{bf16, f16};
use reasoning_rpc_core::{LayerPlan, LayerView, Merge, PlanParts};
use reasoning_rpc_cpu::{self as cpu, KvPages, ScratchOn, Stored, score_scratch_bytes};

use crate::batch::Batched;
use crate::compressor::Compressor;
use crate::draft::Draft;
use crate::error::{Result, refuse};
use crate::plan::blocks;
use crate::tensors::{Pages, Views};
use crate::types::{Dtype, Layer, Plan, Rotary, RotaryStyle, Window};
use crate::workspace::{Carver, Region};

/// The rotation by some positions.
pub(crate) struct Ahead {
    cos: Vec<f32>,
    sin: Vec<f32>,
    style: RotaryStyle,
}

impl Ahead {
    pub(crate) fn new(rotary: &Rotary, positions: usize, head_dim: usize) -> Result<Self> {
        let count = rotary.inv_freq.len();
        if count == 0 || count > head_dim / 2 {
            let most = head_dim / 2;
            return refuse("inv_freq", format_args!("1 to {most} numbers"), count);
        }
        if let Some(x) = rotary.inv_freq.iter().find(|x| !x.is_finite()) {
            return refuse("inv_freq", "finite numbers", x);
        }
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        // What else rotations do to a query (an attention factor) was done when it was rotated.
        cpu::rope_table(&[positions as i64], &rotary.inv_freq, 1.0, &mut cos, &mut sin);
        Ok(Self {
            cos,
            sin,
            style: rotary.style,
        })
    }

    /// Rotates queries of `head_dim` elements each.
    pub(crate) fn rotate(&self, queries: &mut [f32], head_dim: usize) {
        let half = self.cos.len();
        for query in queries.chunks_exact_mut(head_dim) {
            for (i, (cos, sin)) in self.cos.iter().zip(&self.sin).enumerate() {
                let (low, high) = match self.style {
                    RotaryStyle::HalfSplit => (i, i + half),
                    RotaryStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                let (x, y) = (query[low], query[high]);
                query[low] = x * cos - y * sin;
                query[high] = y * cos + x * sin;
            }
        }
    }
}

impl Compressor {
    /// # Safety
    /// As [`plan`](Self::plan).
    pub(crate) unsafe fn plan_ahead<'w>(
        &self,
        ahead: &Ahead,
        layer: &Layer,
        batch: &Batched<'_>,
        window: &Window<'_>,
        region: Region,
        scratch: &mut Carver<'_>,
    ) -> Result<Plan<'w>> {
        // SAFETY: the caller's contract.
        unsafe {
            match self.dtype {
                Dtype::F32 => self.plan_typed::<f32>(ahead, layer, batch, window, region, scratch),
                Dtype::F16 => self.plan_typed::<f16>(ahead, layer, batch, window, region, scratch),
                Dtype::Bf16 => self.plan_typed::<bf16>(ahead, layer, batch, window, region, scratch),
                Dtype::I8 => self.plan_typed::<i8>(ahead, layer, batch, window, region, scratch),
            }
        }
    }

    /// # Safety
    /// As [`plan`](Self::plan).
    unsafe fn plan_typed<'w, E: Stored>(
        &self,
        ahead: &Ahead,
        layer: &Layer,
        batch: &Batched<'_>,
        window: &Window<'_>,
        region: Region,
        scratch: &mut Carver<'_>,
    ) -> Result<Plan<'w>> {
        let views = Views::<E>::new(self, layer, batch)?;
        let source = self.source(layer, batch, window)?;
        // SAFETY: the caller's contract.
        let (blocks, mut memory) = unsafe { (blocks(batch, scratch)?, region.carver::<'w>()) };
        let mut draft = Draft::new(self, batch, &mut memory)?;
        let (mut block_count, mut length, mut most) = (0, 0, 0);
        for sequence in batch.sequences() {
            block_count = block_count.max(batch.blocks(sequence.length));
            length = length.max(sequence.length);
            most = most.max(sequence.candidates);
        }
        let merged = if self.merges() { most } else { 0 };
        let mut pages = Pages::new(scratch, block_count)?;
        let queries = scratch.filled(self.query_count() * self.head_dim, 0.0f32)?;
        let all = scratch.filled(length, 0.0f32)?;
        let keys = scratch.filled(merged * self.head_dim, 0.0f32)?;
        let history = scratch.filled(most, 0.0f32)?;
        let kept = scratch.filled(most, 0u32)?;
        let new_history = scratch.filled(most, 0.0f32)?;
        let shifts = scratch.filled(merged, 0.0f32)?;
        let direction = scratch.filled(if merged > 0 { self.head_dim } else { 0 }, 0.0f32)?;
        let merges = scratch.filled(merged, Merge::default())?;
        let merged_dim = if merged > 0 { self.head_dim } else { 0 };
        let floats = scratch.filled(LayerPlan::scratch_floats(most, merged_dim), 0.0f32)?;
        let moments = scratch.filled(LayerPlan::moment_floats(merged_dim), 0.0f64)?;
        let bytes = score_scratch_bytes(self.query_count(), length, self.head_dim);
        let mut own = ScratchOn::over(scratch.take(bytes)?);
        for sequence in batch.sequences().filter(|sequence| sequence.candidates > 0) {
            let candidates = sequence.prompt..sequence.prompt + sequence.candidates;
            let all = &mut all[..sequence.length];
            for kv_head in 0..self.kv_heads {
                let keys = &mut keys[..merged.min(sequence.candidates) * self.head_dim];
                // SAFETY: the caller's contract; ids and `source` were checked for this batch.
                unsafe {
                    self.gather(&source, &sequence, kv_head, queries)?;
                    ahead.rotate(queries, self.head_dim);
                    let id = |index| batch.block(&sequence, index);
                    let ids = (0..batch.blocks(sequence.length)).map(id);
                    let count = pages.find(&views, kv_head, ids);
                    let pages = pages.read(&views, count, sequence.length)?;
                    self.score_all(&pages, queries, all, &mut own)?;
                    for (entry, key) in candidates.clone().zip(keys.chunks_exact_mut(self.head_dim)) {
                        cpu::read_key(&pages, entry, key)?;
                    }
                    let mut places = history.iter_mut();
                    views.history(kv_head, candidates.clone(), id, |found| {
                        if let Some(place) = places.next() {
                            *place = found.read();
                        }
                    });
                }
                let view = LayerView {
                    layer: layer.layer as usize,
                    done: sequence.done,
                    head_dim: self.head_dim,
                    candidates: &[sequence.candidates],
                    scores: &all[candidates.clone()],
                    history: &history[..sequence.candidates],
                    keys,
                    queries: if merged > 0 { queries } else { &[] },
                    ..LayerView::default()
                };
                let mut ends = [0];
                let mut plan = LayerPlan::over(PlanParts {
                    kept,
                    ends: &mut ends,
                    scratch: floats,
                    history: new_history,
                    merges,
                    directions: direction,
                    shifts,
                    moments,
                });
                self.policy.plan(&view, &mut plan)?;
                plan.validate(view.candidates)?;
                draft.add_head(&sequence, kv_head, &plan);
            }
        }
        // SAFETY: the caller's contract.
        let plan = unsafe { draft.finish(batch, &blocks, self.kv_heads as u32)? };
        self.check(&plan, batch)?;
        Ok(plan)
    }

    /// The mean attention that queries give each entry of a KV head.
    pub(crate) fn score_all<E: Stored>(
        &self,
        pages: &KvPages<'_, E>,
        queries: &[f32],
        all: &mut [f32],
        scratch: &mut ScratchOn<'_>,
    ) -> Result<()> {
        let entries = 0..all.len();
        let entries = std::slice::from_ref(&entries);
        let count = self.query_count();
        cpu::score(
            self.simd, pages, entries, queries, count, self.scale, all, scratch,
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition in float64, with elements behind the rotated ones.
    #[test]
    fn queries_are_rotated_on_in_either_style() {
        let inv_freq = vec![1.0, 0.25, 1e-3];
        let query: Vec<f32> = (0..8).map(|i| i as f32 - 3.5).collect();
        for style in [RotaryStyle::HalfSplit, RotaryStyle::Interleaved] {
            let rotary = Rotary {
                inv_freq: inv_freq.clone(),
                style,
            };
            let mut found = query.clone();
            Ahead::new(&rotary, 16, 8).unwrap().rotate(&mut found, 8);
            assert_eq!(found[6..], query[6..]);
            for (i, frequency) in inv_freq.iter().enumerate() {
                let (low, high) = match style {
                    RotaryStyle::HalfSplit => (i, i + 3),
                    RotaryStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                let (sin, cos) = (16.0 * f64::from(*frequency)).sin_cos();
                let (x, y) = (f64::from(query[low]), f64::from(query[high]));
                assert!((f64::from(found[low]) - (x * cos - y * sin)).abs() < 1e-5);
                assert!((f64::from(found[high]) - (x * sin + y * cos)).abs() < 1e-5);
            }
        }
        let refused = |inv_freq| {
            let style = RotaryStyle::HalfSplit;
            Ahead::new(&Rotary { inv_freq, style }, 16, 8).is_err()
        };
        assert!(refused(vec![]) && refused(vec![1.0; 5]) && refused(vec![f32::NAN]));
    }
}
