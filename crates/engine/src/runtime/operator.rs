//! `reasoning_rpc::CachedAttention`: the CPU's attention loops as an ONNX Runtime operator.
//!
//! Per layer it rotates queries and keys, appends keys and values behind the valid entries of every
//! row's cache, attends, and records the queries that the sequence's policy will ask for. It does
//! not know compression; lengths change only when the engine commits a step that succeeded.

#![allow(unsafe_code)] // tensors and caches as raw memory, written in disjoint parts by the workers

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use half::{bf16, f16};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;
use reasoning_rpc_core::Attention;
use reasoning_rpc_cpu::{self as cpu, Heads, HeadsMut, Recorded, Scratch, Simd, Stored};

use super::linear::{QuantizedGather, QuantizedLinear};
use super::record::Record;
use super::tensors;
use super::units::{Shape, Unit, Units};
use super::workers::{self, Parts};
use crate::cache::CacheType;
use crate::error::{Error, Result, panic_text};
use crate::runner::{NodeTimes, StepRow};

const DOMAIN: &str = "reasoning_rpc";
const NAME: &str = "CachedAttention";

/// What the operator's nodes share: the rows of the step that runs, and buffers.
///
/// The lock is taken once per node by the one thread that drives the session, so nothing ever
/// waits for it.
pub(crate) struct AttentionState {
    pub(super) simd: Simd,
    pub(super) threads: usize,
    step: Mutex<StepContext>,
    scratches: Mutex<Vec<Scratch>>,
    /// Activations of the product that runs.
    pub(super) tiles: Mutex<Vec<cpu::QuantizedTile>>,
    #[cfg(test)]
    pub(crate) fault: Mutex<Option<Fault>>,
}

/// Where a test wants a panic.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Node,
    Worker,
}

#[derive(Default)]
pub(crate) struct StepContext {
    /// The rows of the step, lent by their sequences.
    pub rows: Vec<StepRow>,
    /// What went wrong inside a node, in our own terms.
    pub failure: Option<Error>,
    /// Time inside the step's nodes.
    pub times: NodeTimes,
    rope: RopeTable,
    rotated: Vec<f32>,
    /// The rotation of each row's queries to the next interval, and those queries; of rows that look ahead.
    rope_ahead: RopeTable,
    ahead: Vec<f32>,
    units: Units,
    /// Results of chunks of caches that several units share.
    partial: Vec<f32>,
    record: Record,
}

/// cos and sin of the step's positions; the same for every layer that has the same frequencies.
#[derive(Default)]
struct RopeTable {
    positions: Vec<i64>,
    inv_freq: Vec<f32>,
    factor: f32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    fn update(&mut self, positions: impl Iterator<Item = i64> + Clone, inv_freq: &[f32], factor: f32) {
        let same = self.positions.iter().copied().eq(positions.clone());
        if same && self.inv_freq == inv_freq && self.factor == factor {
            return;
        }
        self.positions.clear();
        self.positions.extend(positions);
        self.inv_freq.clear();
        self.inv_freq.extend_from_slice(inv_freq);
        self.factor = factor;
        cpu::rope_table(&self.positions, inv_freq, factor, &mut self.cos, &mut self.sin);
    }
}

impl AttentionState {
    /// For a session of so many threads.
    pub(crate) fn new(simd: Simd, threads: usize) -> Self {
        Self {
            simd,
            threads,
            step: Mutex::default(),
            // One for each thread, so that no step finds too few.
            scratches: Mutex::new((0..threads).map(|_| Scratch::new()).collect()),
            tiles: Mutex::default(),
            #[cfg(test)]
            fault: Mutex::default(),
        }
    }

    #[cfg(test)]
    fn panic_if(&self, place: Fault) {
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(fault != Some(place), "planted in a {place:?}");
    }

    /// The context of the step. A panic in a node leaves it as it was: rows are only lent.
    pub(crate) fn step(&self) -> MutexGuard<'_, StepContext> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every scratch large enough: which thread comes first to one is chance.
    fn reserve_scratches(&self, bytes: usize) {
        let mut scratches = self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        scratches.iter_mut().for_each(|scratch| scratch.reserve(bytes));
    }

    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let lock = || self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = lock().pop();
        let mut scratch = taken.unwrap_or_default();
        let result = work(&mut scratch);
        lock().push(scratch);
        result
    }
}

/// The operator domain of a session; its nodes work on `state`.
#[allow(clippy::arc_with_non_send_sync)] // the session takes an Arc, and only the session holds it
pub(crate) fn operator_domain(state: &Arc<AttentionState>) -> Result<Arc<OperatorDomain>> {
    let domain = OperatorDomain::new(DOMAIN)?
        .add(CachedAttention(Arc::clone(state)))?
        .add(QuantizedLinear(Arc::clone(state)))?
        .add(QuantizedGather(Arc::clone(state)))?;
    Ok(Arc::new(domain))
}

struct CachedAttention(Arc<AttentionState>);

impl Operator for CachedAttention {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Int32, Int64};
        // q, k, v, positions, row_offsets, slots, inv_freq
        [Float32, Float32, Float32, Int64, Int32, Int64, Float32].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let integer = |name: &str| -> ort::Result<usize> {
            context
                .get::<i64>(name)
                .and_then(|value| usize::try_from(value).ok())
                .ok_or_else(|| {
                    ort::Error::new(format!("{NAME}: attribute {name}: expected a count, found none"))
                })
        };
        let float = |name: &str| -> ort::Result<f32> {
            context
                .get::<f32>(name)
                .filter(|value| value.is_finite())
                .ok_or_else(|| {
                    ort::Error::new(format!("{NAME}: attribute {name}: expected a number, found none"))
                })
        };
        let kernel = AttentionKernel {
            state: Arc::clone(&self.0),
            layer: integer("layer")?,
            num_heads: integer("num_heads")?,
            num_kv_heads: integer("num_kv_heads")?,
            head_dim: integer("head_dim")?,
            scale: float("scale")?,
            rope_factor: float("rope_attention_factor")?,
        };
        if kernel.num_kv_heads == 0 || !kernel.num_heads.is_multiple_of(kernel.num_kv_heads) {
            return Err(ort::Error::new(format!(
                "{NAME}: attribute num_heads: expected a multiple of num_kv_heads {}, found {}",
                kernel.num_kv_heads, kernel.num_heads
            )));
        }
        Ok(kernel)
    }
}

struct AttentionKernel {
    state: Arc<AttentionState>,
    layer: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    scale: f32,
    rope_factor: f32,
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        // Nothing below ONNX Runtime's frames may unwind.
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.compute_node(context)))
            .unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))));
        self.state.step().times.attention += start.elapsed();
        result.map_err(|error| {
            let text = format!("{NAME} of layer {}: {error}", self.layer);
            self.state.step().failure = Some(error);
            ort::Error::new(text.replace('\0', " "))
        })
    }
}

/// The node's inputs, checked against each other.
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    row_offsets: &'a [i32],
}

impl AttentionKernel {
    fn compute_node(&self, context: &ComputeContext) -> Result<()> {
        let float = |index| tensors::input::<f32>(context, index);
        let (q, k, v, inv_freq) = (float(0)?, float(1)?, float(2)?, float(6)?);
        let positions = tensors::input::<i64>(context, 3)?;
        let row_offsets = tensors::input::<i32>(context, 4)?;
        let slots = tensors::input::<i64>(context, 5)?;

        let tokens = positions.len();
        let query_width = self.num_heads * self.head_dim;
        let kv_width = self.num_kv_heads * self.head_dim;
        expect("q", q.len(), tokens * query_width)?;
        expect("k", k.len(), tokens * kv_width)?;
        expect("v", v.len(), tokens * kv_width)?;
        expect("inv_freq", inv_freq.len(), self.head_dim / 2)?;
        // SAFETY: once.
        let out = unsafe { tensors::output(context, 0, &[tokens as i64, query_width as i64]) }?;
        expect("output", out.len(), tokens * query_width)?;

        let mut step = self.state.step();
        let step = &mut *step;
        #[cfg(test)]
        self.state.panic_if(Fault::Node);
        self.check_rows(&step.rows, slots, row_offsets, tokens)?;
        step.rope
            .update(positions.iter().copied(), inv_freq, self.rope_factor);
        step.rotated.resize(tokens * query_width, 0.0);

        let inputs = Inputs { q, k, v, row_offsets };
        match step.rows.first().map(|row| row.cache.element()) {
            Some(CacheType::F32) => self.attend_rows::<f32>(context, &inputs, step, out),
            Some(CacheType::F16) => self.attend_rows::<f16>(context, &inputs, step, out),
            Some(CacheType::Bf16) => self.attend_rows::<bf16>(context, &inputs, step, out),
            Some(CacheType::I8) => self.attend_rows::<i8>(context, &inputs, step, out),
            None => Ok(()),
        }
    }

    /// The rows that the graph was fed must be those of the step, each with a live cache that fits.
    fn check_rows(&self, rows: &[StepRow], slots: &[i64], row_offsets: &[i32], tokens: usize) -> Result<()> {
        if slots.len() != rows.len() || row_offsets.len() != rows.len() + 1 {
            return Err(Error::InvalidArgument(format!(
                "rows: expected {} slots and {} offsets, found {} and {}",
                rows.len(),
                rows.len() + 1,
                slots.len(),
                row_offsets.len()
            )));
        }
        for (row, &slot) in rows.iter().zip(slots) {
            if row.slot != slot {
                return Err(Error::InvalidArgument(format!(
                    "slot: expected a live one of this step ({:#x}), found {slot:#x}: stale or foreign",
                    row.slot
                )));
            }
            let shape = row.cache.shape();
            if shape.kv_heads != self.num_kv_heads
                || shape.head_dim != self.head_dim
                || self.layer >= shape.layers
                || row.cache.element() != rows[0].cache.element()
            {
                return Err(Error::Model(format!(
                    "layer {}: expected a cache of {} KV heads of {} elements, found {} of {} in {} layers",
                    self.layer,
                    self.num_kv_heads,
                    self.head_dim,
                    shape.kv_heads,
                    shape.head_dim,
                    shape.layers
                )));
            }
        }
        let rising = row_offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if row_offsets[0] != 0 || !rising || row_offsets[rows.len()] as usize != tokens {
            return Err(Error::InvalidArgument(format!(
                "row_offsets: expected 0 rising to {tokens}, found {row_offsets:?}"
            )));
        }
        Ok(())
    }

    fn attend_rows<E: Stored>(
        &self,
        context: &ComputeContext,
        inputs: &Inputs<'_>,
        step: &mut StepContext,
        out: &mut [f32],
    ) -> Result<()> {
        let (num_heads, head_dim, kv_heads) = (self.num_heads, self.head_dim, self.num_kv_heads);
        let query_width = num_heads * head_dim;
        let group = num_heads / kv_heads;
        let range_of = |row: usize| -> Range<usize> {
            inputs.row_offsets[row] as usize..inputs.row_offsets[row + 1] as usize
        };

        let StepContext {
            rows,
            rope,
            rotated,
            rope_ahead,
            ahead,
            units,
            partial,
            record,
            ..
        } = step;
        let half = head_dim / 2;
        let intervals = rows.iter().map(|row| match row.attention {
            Some(Attention::Ahead { interval }) => interval as i64,
            _ => 0,
        });
        if intervals.clone().any(|interval| interval > 0) {
            rope_ahead.update(intervals, &rope.inv_freq, 1.0);
            ahead.resize(rotated.len(), 0.0);
        }
        let (rotated_parts, ahead_parts) = (Parts::new(rotated), Parts::new(ahead));
        self.parallel(context, rows.len() * kv_heads, inputs.q.len() > 1 << 15, |unit| {
            let (row, kv_head) = (unit / kv_heads, unit % kv_heads);
            let cache = &rows[row].cache;
            let before = cache.head(self.layer, kv_head).len();
            let tokens = range_of(row);
            // SAFETY: one unit per row and KV head, so nothing else touches this head's pages.
            let mut pages = unsafe { cache.pages_mut::<E>(self.layer, kv_head) }?;
            let mut key = [0.0f32; 256];
            let looks_ahead = matches!(rows[row].attention, Some(Attention::Ahead { .. }));
            for (index, token) in tokens.enumerate() {
                let (cos, sin) = (
                    &rope.cos[token * half..][..half],
                    &rope.sin[token * half..][..half],
                );
                let at = (token * kv_heads + kv_head) * head_dim;
                let key = &mut key[..head_dim];
                cpu::rotate(
                    self.state.simd,
                    &inputs.k[at..at + head_dim],
                    cos,
                    sin,
                    head_dim,
                    key,
                )?;
                cpu::append(
                    self.state.simd,
                    &mut pages,
                    before + index,
                    key,
                    &inputs.v[at..at + head_dim],
                )?;
                let heads = token * query_width + kv_head * group * head_dim;
                // SAFETY: tokens of different rows and heads of different groups do not overlap.
                let to = unsafe { rotated_parts.part(heads, group * head_dim) };
                cpu::rotate(
                    self.state.simd,
                    &inputs.q[heads..heads + group * head_dim],
                    cos,
                    sin,
                    head_dim,
                    to,
                )?;
                if looks_ahead {
                    let (cos, sin) = (
                        &rope_ahead.cos[row * half..][..half],
                        &rope_ahead.sin[row * half..][..half],
                    );
                    // SAFETY: as above.
                    let further = unsafe { ahead_parts.part(heads, group * head_dim) };
                    cpu::rotate(self.state.simd, to, cos, sin, head_dim, further)?;
                }
            }
            Ok(())
        })?;

        for (index, row) in rows.iter_mut().enumerate() {
            if let Some(first) = row.first_generated {
                row.cache.window_mut(self.layer).set_frequencies(&rope.inv_freq);
                for (generated, token) in (first..).zip(range_of(index)) {
                    let queries = &rotated[token * query_width..][..query_width];
                    row.cache.window_mut(self.layer).record(generated, queries);
                }
            }
        }

        let shape = Shape {
            kv_heads,
            group,
            head_dim,
            threads: self.state.threads,
        };
        record.lay_out(rows, kv_heads, self.layer, group, |row| range_of(row).len())?;
        let before = |row: usize, kv_head| rows[row].cache.head(self.layer, kv_head).len();
        units.plan(
            rows.len(),
            |row, kv_head| (range_of(row), before(row, kv_head)),
            &shape,
        );
        let most = units.list.iter().map(|unit| unit.tokens.len()).max().unwrap_or(0);
        let bytes = cpu::attend_scratch_bytes::<E>(most, group, head_dim);
        self.state.reserve_scratches(bytes);
        if partial.len() < units.floats {
            partial.resize(units.floats, 0.0);
        }
        let recorded = record.lend();
        let (rotated, ahead, units) = (&rotated[..], &ahead[..], &*units);
        let (out, partial) = (Parts::new(out), Parts::new(partial));
        self.parallel(context, units.list.len(), true, |index| {
            #[cfg(test)]
            self.state.panic_if(Fault::Worker);
            let Unit {
                row,
                kv_head,
                ref tokens,
                ref chunks,
                shared,
            } = units.list[index];
            let (row_tokens, before) = (range_of(row), before(row, kv_head));
            let cache = &rows[row].cache;
            // SAFETY: the row's new entries were written above; nothing writes until all workers
            // are done.
            let pages = unsafe { cache.pages::<E>(self.layer, kv_head, before + row_tokens.len()) }?;
            let first = tokens.start * query_width + kv_head * group * head_dim;
            let queries = Heads::new(&rotated[first..], tokens.len(), group, head_dim, query_width)?;
            let visible_before = before + (tokens.start - row_tokens.start);
            let heads = || {
                let part = out.address(first, (tokens.len() - 1) * query_width + group * head_dim);
                // SAFETY: different rows and tokens, and heads of different groups, write different
                // elements of `out`; of the units that share some, only the last one asks.
                unsafe { HeadsMut::from_raw(part, tokens.len(), group, head_dim, query_width) }
            };
            let simd = self.state.simd;
            let count = tokens.len() * group;
            let asked = rows[row].attention;
            let others = match asked {
                Some(Attention::Ahead { .. }) => Some(Heads::new(
                    &ahead[first..],
                    tokens.len(),
                    group,
                    head_dim,
                    query_width,
                )?),
                _ => None,
            };
            let recording = asked.map(|_| Recorded {
                // SAFETY: each unit has chunks of its own.
                weights: unsafe { recorded.weights(row * kv_heads + kv_head, chunks, count) },
                others,
            });
            let add_attention = || {
                let Some(of) = asked else {
                    return Ok(());
                };
                let (part, history) = (
                    row * kv_heads + kv_head,
                    cache.head(self.layer, kv_head).history(),
                );
                // SAFETY: of the units of this row and KV head, only the last one asks, when the others are done.
                unsafe { recorded.add(simd, part, of, history, before, tokens.len(), group) }
            };
            let Some(shared) = shared.map(|shared| &units.shared[shared]) else {
                self.state.with_scratch(|scratch| {
                    cpu::attend_recorded(
                        simd,
                        &pages,
                        visible_before,
                        queries,
                        &mut heads()?,
                        recording,
                        self.scale,
                        scratch,
                    )?;
                    Ok::<(), Error>(())
                })?;
                return add_attention();
            };
            // SAFETY: each unit has chunks of its own.
            let mine = unsafe {
                let first = shared.floats.start + chunks.start * shared.chunk;
                partial.part(first, chunks.len() * shared.chunk)
            };
            self.state.with_scratch(|scratch| {
                cpu::attend_chunks(
                    simd,
                    &pages,
                    visible_before,
                    queries,
                    chunks.clone(),
                    mine,
                    recording,
                    self.scale,
                    scratch,
                )
            })?;
            if shared.is_last() {
                // SAFETY: the others are done with their parts.
                let all = unsafe { partial.part(shared.floats.start, shared.floats.len()) };
                cpu::merge_chunks(simd, all, &mut heads()?)?;
                add_attention()?;
            }
            Ok(())
        })?;
        record.hand_over(rows, kv_heads, self.layer);
        Ok(())
    }

    /// Runs `work` for every unit, on ONNX Runtime's own threads if `wide`.
    fn parallel(
        &self,
        context: &ComputeContext,
        units: usize,
        wide: bool,
        work: impl Fn(usize) -> Result<()> + Sync,
    ) -> Result<()> {
        if !wide || units == 1 || self.state.threads == 1 {
            return (0..units).try_for_each(work);
        }
        workers::parallel(context, units, &work)
    }
}

fn expect(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Model(format!(
        "{NAME}: {name}: expected {expected} elements, found {found}"
    )))
}
