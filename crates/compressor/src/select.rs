//! What stays.

use reasoning_rpc_core::{LayerPlan, LayerView, PlanParts};

use crate::batch::{Batched, Sequence};
use crate::compressor::Compressor;
use crate::draft::Draft;
use crate::error::{Error, Result, refuse};
use crate::plan::blocks;
use crate::types::{Batch, Merge, Plan, Request, Select, Selection, Workspace};
use crate::workspace::{Carver, Needs, Region, divide};

/// What was chosen for one sequence.
struct Choice {
    sets: u32,
    count: u32,
    merges: usize,
}

impl Compressor {
    /// Chooses what stays of every sequence in one layer by scores as [`score`](Self::score) writes them. The plan
    /// lies in the workspace, until it is used for another `select` or [`compress`](Self::compress).
    ///
    /// # Errors
    /// [`Selection::Lookahead`], which [`plan`](Self::plan) is for; a batch that cannot be, scores that do not fit it or are NaN, an answer of a callback that cannot be,
    /// too few spare blocks, too small a workspace.
    ///
    /// # Safety
    /// The ids in the block table are readable and not written meanwhile. The workspace is not used by
    /// anyone else, for `'w` up to the next use of it for a plan.
    pub unsafe fn select<'w>(
        &self,
        layer: u32,
        batch: &Batch<'_>,
        scores: &[f32],
        workspace: Workspace,
    ) -> Result<Plan<'w>> {
        let batch = Batched::new(batch, self.window())?;
        let needs = Needs::of(self, &batch);
        // SAFETY: the caller's contract.
        unsafe {
            let (region, mut scratch) = divide(workspace, &needs)?;
            self.select_in(layer, &batch, scores, region, &mut scratch)
        }
    }

    /// # Safety
    /// As [`select`](Self::select).
    pub(crate) unsafe fn select_in<'w>(
        &self,
        layer: u32,
        batch: &Batched<'_>,
        scores: &[f32],
        region: Region,
        scratch: &mut Carver<'_>,
    ) -> Result<Plan<'w>> {
        let expected = batch.score_count(self.kv_heads);
        if scores.len() != expected {
            return refuse("scores", expected, scores.len());
        }
        if self.ahead.is_some() {
            return refuse(
                "select",
                "a policy that looks at scores alone",
                format_args!("{}: plan or compress by it", self.policy.name()),
            );
        }
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            return refuse("scores", "numbers", format_args!("NaN at {index}"));
        }
        // SAFETY: the caller's contract.
        let (blocks, mut memory) = unsafe { (blocks(batch, scratch)?, region.carver::<'w>()) };
        let most = batch.sequences().map(|sequence| sequence.candidates).max();
        let mut draft = Draft::new(self, batch, &mut memory)?;
        let candidates = scratch.filled(self.kv_heads, 0usize)?;
        let ends = scratch.filled(self.kv_heads, 0usize)?;
        let floats = scratch.filled(LayerPlan::scratch_floats(most.unwrap_or(0), 0), 0.0)?;
        let mut rest = scores;
        for sequence in batch.sequences().filter(|sequence| sequence.candidates > 0) {
            let (own, tail) = rest.split_at(self.kv_heads * sequence.candidates);
            rest = tail;
            let (room, merges) = draft.room(own.len(), self.most_merges(sequence.candidates));
            let Choice { sets, count, merges } = match &self.selection {
                Selection::None => keep_all(room, sequence.candidates),
                Selection::Callback(select) => self.ask(&**select, layer, &sequence, own, room, merges)?,
                _ => {
                    candidates.fill(sequence.candidates);
                    let view = LayerView {
                        layer: layer as usize,
                        done: sequence.done,
                        seed: self.seed,
                        candidates,
                        scores: own,
                        ..LayerView::default()
                    };
                    let mut plan = LayerPlan::over(PlanParts {
                        kept: room,
                        ends,
                        scratch: floats,
                        ..PlanParts::default()
                    });
                    self.policy.plan(&view, &mut plan)?;
                    Choice {
                        sets: plan.sets() as u32,
                        count: plan.set(0).len() as u32,
                        merges: 0,
                    }
                }
            };
            draft.add(&sequence, sets, count, merges)?;
        }
        let default_sets = match self.selection {
            Selection::None | Selection::Callback(_) => 1,
            _ if self.policy.spec().per_kv_head => self.kv_heads as u32,
            _ => 1,
        };
        // SAFETY: the caller's contract.
        let plan = unsafe { draft.finish(batch, &blocks, default_sets)? };
        self.check(&plan, batch)?;
        Ok(plan)
    }

    /// Asks the caller's selection and checks what has to be before its answer is looked at.
    fn ask(
        &self,
        select: &dyn Select,
        layer: u32,
        sequence: &Sequence,
        scores: &[f32],
        kept: &mut [u32],
        merges: &mut [Merge],
    ) -> Result<Choice> {
        let mut request = Request {
            layer,
            sequence: sequence.index as u32,
            kv_heads: self.kv_heads as u32,
            candidates: sequence.candidates as u32,
            compressions: sequence.done as u32,
            scores,
            kept,
            merges,
            sets: 1,
            kept_count: 0,
            merge_count: 0,
        };
        select.select(&mut request).map_err(Error::Callback)?;
        let (sets, count, merges) = (request.sets, request.kept_count, request.merge_count as usize);
        let of = sequence.index;
        if sets != 1 && sets as usize != self.kv_heads {
            return refuse(
                format_args!("sets of sequence {of}"),
                format_args!("1 or {}", self.kv_heads),
                sets,
            );
        }
        if count as usize > sequence.candidates {
            let most = sequence.candidates;
            return refuse(
                format_args!("kept_count of sequence {of}"),
                format_args!("at most {most}"),
                count,
            );
        }
        let most = self.most_merges(sequence.candidates);
        if merges > most {
            return refuse(
                format_args!("merge_count of sequence {of}"),
                format_args!("at most {most}"),
                merges,
            );
        }
        Ok(Choice { sets, count, merges })
    }
}

fn keep_all(room: &mut [u32], candidates: usize) -> Choice {
    room.iter_mut()
        .zip(0..candidates as u32)
        .for_each(|(slot, index)| *slot = index);
    Choice {
        sets: 1,
        count: candidates as u32,
        merges: 0,
    }
}
