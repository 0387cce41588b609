//! The engine: a model, its runner and the block pool, shared by any number of sequences.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use reasoning_rpc_core::{CacheShape, Policy, Trigger};
use reasoning_rpc_cpu::Simd;

use crate::cache::{BlockPool, CacheType, Kept, SequenceCache};
use crate::compress::{self, CompressionRecord, Moment, Workspace};
use crate::error::{Error, Result, panic_text};
use crate::evict;
use crate::metrics::{Counters, Metrics};
use crate::model::{Flavour, Model};
use crate::runner::{CachedRunner, NodeTimes, PortableRunner, Runner, Step, StepRow};
use crate::runtime;
use crate::sampling::SamplingOptions;
use crate::sequence::{Sequence, SequenceOptions};

/// Options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The model folder, as `reasoning-rpc-export` writes it.
    pub model: PathBuf,
    /// libonnxruntime; if absent it is searched for ([`runtime::load`]).
    pub onnxruntime: Option<PathBuf>,
    /// Threads of a step; 0: one per core.
    pub threads: usize,
    /// Element type of the cache; if absent fp16, or fp32 for graphs of the portable flavour, which
    /// take no other.
    pub cache_type: Option<CacheType>,
    /// Bytes that the caches of all sequences, and the queries that policies store of whole intervals
    /// ([`Engine::query_bytes`]), may take together; if absent, what one uncompressed
    /// text of the model's whole context takes. Address space only, until it is used.
    pub budget: Option<usize>,
    /// Entries of one block, a multiple of 16.
    pub block_entries: usize,
    /// The most given tokens of one sequence that one step runs.
    pub prefill_chunk: usize,
    /// Whether opening compares the hash of the weights with the manifest's, which reads them all.
    pub verify_weights: bool,
    /// Whether quantised weights are read where their file is mapped: in the page cache, which engines of all processes share
    /// and which the system takes back as it needs. Otherwise opening reads them into huge pages of this process, from
    /// which steps with one row are some 20% faster; engines of the same model share those.
    pub map_weights: bool,
}

impl EngineOptions {
    /// The defaults for a model folder.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            onnxruntime: None,
            threads: 0,
            cache_type: None,
            budget: None,
            block_entries: 64,
            prefill_chunk: 256,
            verify_weights: true,
            map_weights: false,
        }
    }
}

/// A loaded model that sequences share. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<EngineShared>,
}

/// What the engine and its sequences share. Sequences keep it alive.
pub(crate) struct EngineShared {
    pub(crate) model: Model,
    pub(crate) slots: Slots,
    default_sampling: SamplingOptions,
    pub(crate) pool: Arc<BlockPool>,
    pub(crate) shape: CacheShape,
    cache_type: CacheType,
    simd: Simd,
    pub(crate) prefill_chunk: usize,
    /// One graph run at a time: a session has one driver.
    pub(crate) driver: Mutex<Driver>,
    workspaces: Mutex<Vec<Workspace>>,
    pub(crate) counters: Counters,
}

pub(crate) struct Driver {
    pub(crate) runner: Box<dyn Runner>,
    step: Step,
}

impl Engine {
    /// Opens a model folder.
    ///
    /// # Errors
    /// [`Error::Model`], [`Error::Runtime`], or [`Error::InvalidArgument`] for an option.
    pub fn open(options: &EngineOptions) -> Result<Self> {
        let simd = Simd::from_env().map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let model = Model::open(&options.model, options.verify_weights)?;
        let default_sampling = SamplingOptions::from_generation(&model.manifest().generation)?;
        let flavour = model.manifest().flavour;
        let d = model.manifest().dimensions;
        let cache_type = match (flavour, options.cache_type) {
            (Flavour::Cached, chosen) => chosen.unwrap_or_default(),
            (Flavour::Portable, None | Some(CacheType::F32)) => CacheType::F32,
            (Flavour::Portable, Some(other)) => {
                return Err(Error::InvalidArgument(format!(
                    "cache type: expected fp32 for a graph of the portable flavour, found {}",
                    other.name()
                )));
            }
        };
        let entries = options.block_entries;
        if entries == 0 || !entries.is_multiple_of(16) || entries > 1 << 16 {
            return Err(Error::InvalidArgument(format!(
                "block entries: expected a multiple of 16 up to 65536, found {entries}"
            )));
        }
        if options.prefill_chunk == 0 || options.prefill_chunk > 1 << 20 {
            return Err(Error::InvalidArgument(format!(
                "prefill chunk: expected 1 to 1048576 tokens, found {}",
                options.prefill_chunk
            )));
        }
        let shape = CacheShape {
            layers: d.num_layers,
            kv_heads: d.num_kv_heads,
            head_dim: d.head_dim,
            element_bytes: cache_type.bytes(),
            scale_bytes: cache_type.scale_bytes(),
            block_entries: entries,
        };
        let budget = options.budget.unwrap_or_else(|| shape.bytes(d.max_positions));
        let pool = Arc::new(BlockPool::new(budget, shape.block_bytes())?);

        let environment = runtime::load(options.onnxruntime.as_deref())?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let graph = model.graph_path();
        let runner: Box<dyn Runner> = match flavour {
            Flavour::Cached => Box::new(CachedRunner::open(
                &environment,
                &graph,
                threads,
                simd,
                d.vocab_size,
                match options.map_weights {
                    true => None,
                    false => model.read_matrices()?,
                },
            )?),
            Flavour::Portable => Box::new(PortableRunner::open(&environment, &graph, threads, d)?),
        };
        log::info!(
            "opened {}: {} {}, {flavour:?}, {threads} threads, {simd:?}, budget {} bytes",
            options.model.display(),
            model.manifest().architecture,
            model.manifest().weights,
            pool.capacity()
        );
        Ok(Self {
            shared: Arc::new(EngineShared {
                model,
                slots: Slots::default(),
                default_sampling,
                pool,
                shape,
                cache_type,
                simd,
                prefill_chunk: options.prefill_chunk,
                driver: Mutex::new(Driver {
                    runner,
                    step: Step::default(),
                }),
                workspaces: Mutex::default(),
                counters: Counters::default(),
            }),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.shared.model
    }

    /// The dimensions of its caches.
    pub fn cache_shape(&self) -> &CacheShape {
        &self.shared.shape
    }

    /// The element type of its caches.
    pub fn cache_type(&self) -> CacheType {
        self.shared.cache_type
    }

    /// The instruction set that its loops use.
    pub fn simd(&self) -> Simd {
        self.shared.simd
    }

    /// Bytes of the cache budget, in whole blocks, and how many of them are in use.
    pub fn budget(&self) -> (usize, usize) {
        (self.shared.pool.capacity(), self.shared.pool.used())
    }

    /// Bytes of the budget that each sequence of a policy takes for the queries of an interval that it stores, in whole
    /// blocks, from its first step until it is dropped; 0 for a policy that stores none.
    pub fn query_bytes(&self, policy: &dyn Policy) -> usize {
        self.shared.kept(policy).query_blocks * self.shared.shape.block_bytes()
    }

    /// Gives the memory of blocks that no sequence holds back to the system, at once, and returns how many
    /// bytes of it were resident. Whole pages only: of a block's first and last page, what neighbours in use
    /// share stays. The budget is as it was, and blocks are used again as before; their pages come anew.
    ///
    /// From any thread. Steps go on beside it but for those that take or free blocks, which wait. Graphs of the
    /// portable flavour keep their caches elsewhere: 0 then.
    pub fn trim(&self) -> usize {
        self.shared.pool.trim()
    }

    /// The sampling that the model's authors recommend, or temperature 0.6 and top-p 0.95.
    pub fn default_sampling(&self) -> SamplingOptions {
        self.shared.default_sampling
    }

    /// A new, empty sequence.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an option.
    pub fn sequence(&self, options: SequenceOptions) -> Result<Sequence> {
        Sequence::new(Arc::clone(&self.shared), options)
    }

    /// Runs one step of the graph for `sequences`, in any mixture: each advances by its next chunk
    /// of given tokens or by its generated tokens, and is compressed if that is due. Sequences whose
    /// tokens have all been run have logits afterwards.
    ///
    /// One step runs at a time; a second caller waits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]: there is no sequence, one is of another engine, or one has
    /// nothing to run. [`Error::Budget`]: the pool has too few blocks ([`Sequence::reserve`]
    /// promises them). Nothing has advanced then. [`Error::Internal`]: a bug in the graph's step
    /// poisons all of the sequences, one in a compression the sequence that it was for, and the others
    /// have advanced.
    pub fn step(&self, sequences: &mut [&mut Sequence]) -> Result<()> {
        self.shared.step(sequences)
    }

    /// [`step`](Self::step) of one sequence, which also shows the logits after every token that it ran:
    /// `[tokens][vocab]`, in place of what `logits` held. Returns the tokens' positions in the text.
    ///
    /// A text that is known can be read so as if it were being generated, many tokens to a step:
    /// [`Sequence::accept`] all of it, then step while tokens are pending. A step ends where a compression
    /// is due, and the logits of a token do not depend on what else its step runs.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with_logits(&self, sequence: &mut Sequence, logits: &mut Vec<f32>) -> Result<Range<usize>> {
        let start = sequence.written;
        self.shared.step_and_show(&mut [&mut *sequence], Some(logits))?;
        Ok(start..sequence.written)
    }

    /// The sequence that [`Sequence::save`] wrote, of this engine or another of the same model and
    /// cache type: it goes on as the original would.
    ///
    /// # Errors
    /// [`Error::State`] if the bytes are damaged, of another version or of another model,
    /// [`Error::Budget`] if its cache does not fit.
    pub fn restore(&self, bytes: &[u8]) -> Result<Sequence> {
        crate::state::restore(&self.shared, bytes)
    }

    /// As [`restore`](Self::restore), from a file.
    ///
    /// # Errors
    /// Also [`Error::File`].
    pub fn restore_file(&self, path: &std::path::Path) -> Result<Sequence> {
        self.restore(&crate::state::read_file(path)?)
    }

    /// Figures since the engine was opened, over all of its sequences.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics()
    }
}

impl EngineShared {
    /// The context in tokens.
    pub(crate) fn context(&self) -> usize {
        self.model.manifest().dimensions.max_positions
    }

    /// What a policy has a sequence's cache keep.
    pub(crate) fn kept(&self, policy: &dyn Policy) -> Kept {
        let spec = policy.spec();
        match spec.trigger {
            // Never due in this context: nobody will ask.
            Trigger::Interval(schedule) if schedule.due_at(0) > self.context() => Kept::default(),
            Trigger::EveryToken(rolling) if rolling.evictions(self.context()) == 0 => Kept::default(),
            _ => Kept {
                window: spec.window_queries(),
                query_blocks: {
                    let heads = self.model.manifest().dimensions.num_heads;
                    self.shape.query_blocks(spec.counted_queries(), heads)
                },
                history: spec.history || spec.attention.is_some(),
                moments: spec.moment_floats(self.shape.head_dim),
            },
        }
    }

    pub(crate) fn new_cache(&self, kept: Kept) -> SequenceCache {
        let d = &self.model.manifest().dimensions;
        SequenceCache::new(
            Arc::clone(&self.pool),
            self.shape,
            self.cache_type,
            self.model.manifest().flavour == Flavour::Portable,
            d.num_heads * d.head_dim,
            kept,
        )
    }

    pub(crate) fn compress(
        &self,
        cache: &mut SequenceCache,
        moment: &Moment<'_>,
        log: &mut Vec<CompressionRecord>,
    ) -> Result<()> {
        self.dropping(cache, |cache, workspace| {
            compress::compress(self.simd, cache, moment, workspace, log)
        })
    }

    /// Adds queries of a cache, rotated on, to its moments.
    pub(crate) fn add_moments(
        &self,
        cache: &mut SequenceCache,
        generated: Range<usize>,
        num_heads: usize,
        interval: usize,
    ) -> Result<()> {
        self.with_workspace(|workspace| {
            compress::add_moments(self.simd, cache, generated, num_heads, interval, workspace)
        })
    }

    fn with_workspace<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let lock = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = lock().pop();
        let mut workspace = taken.unwrap_or_default();
        let result = work(&mut workspace);
        lock().push(workspace);
        result
    }

    /// Lends a workspace to work that drops entries of a cache, and counts what went.
    fn dropping(
        &self,
        cache: &mut SequenceCache,
        work: impl FnOnce(&mut SequenceCache, &mut Workspace) -> Result<()>,
    ) -> Result<()> {
        let (start, before) = (Instant::now(), cache.entries());
        let result = self.with_workspace(|workspace| work(cache, workspace));
        if result.is_ok() {
            self.counters
                .compressed(before.saturating_sub(cache.entries()), start.elapsed());
        }
        result
    }

    /// Drops what a policy that does so at every token drops now.
    pub(crate) fn evict(&self, cache: &mut SequenceCache, moment: &Moment<'_>) -> Result<()> {
        self.dropping(cache, |cache, workspace| {
            evict::evict(self.simd, cache, moment, &mut workspace.eviction)
        })
    }

    /// Figures of this engine since it was opened.
    pub(crate) fn metrics(&self) -> Metrics {
        let (created, alive) = self.slots.counts();
        let (promised, peak, refusals) = self.pool.figures();
        Metrics {
            sequences_alive: alive,
            sequences_created: created,
            budget_refusals: refusals,
            budget_bytes: self.pool.capacity() as u64,
            budget_used_bytes: self.pool.used() as u64,
            budget_promised_bytes: promised as u64,
            budget_peak_bytes: peak as u64,
            ..self.counters.read()
        }
    }

    pub(crate) fn step(self: &Arc<Self>, sequences: &mut [&mut Sequence]) -> Result<()> {
        self.step_and_show(sequences, None)
    }

    fn step_and_show(
        self: &Arc<Self>,
        sequences: &mut [&mut Sequence],
        show: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        self.advance_and_show(sequences, |_| self.prefill_chunk, show)
            .inspect_err(|error| poison_on_bug(sequences, error))?;
        // One that fails must not keep the others from their compressions.
        let mut result = Ok(());
        for sequence in &mut *sequences {
            if let Err(error) = sequence.check_alive().and_then(|()| sequence.compress_if_due()) {
                result = Err(error);
            }
        }
        result
    }

    /// A step without what follows it: runs the graph and counts what it wrote. Row `index` takes at most
    /// `limit(index)` tokens. Compressions that became due are the caller's to run before these sequences
    /// advance again. If it fails, nothing has advanced, and sequences that still have their caches are as
    /// they were.
    pub(crate) fn advance(
        self: &Arc<Self>,
        sequences: &mut [&mut Sequence],
        limit: impl Fn(usize) -> usize,
    ) -> Result<()> {
        self.advance_and_show(sequences, limit, None)
    }

    /// `show` gets the logits of all tokens.
    fn advance_and_show(
        self: &Arc<Self>,
        sequences: &mut [&mut Sequence],
        limit: impl Fn(usize) -> usize,
        show: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        if sequences.is_empty() {
            return Err(Error::InvalidArgument(
                "step: expected a sequence, found none".into(),
            ));
        }
        for (index, sequence) in sequences.iter_mut().enumerate() {
            sequence.check_alive()?;
            if !Arc::ptr_eq(&sequence.shared, self) {
                return Err(Error::InvalidArgument(
                    "step: expected sequences of this engine, found one of another".into(),
                ));
            }
            sequence.chunk = sequence.next_chunk(limit(index));
            let tokens = sequence.chunk.tokens.len();
            if tokens == 0 {
                return Err(Error::InvalidArgument(
                    "step: expected tokens to run, found a sequence with none: append text, sample or accept first".into(),
                ));
            }
            let grown = sequence.cache_mut()?.grow(tokens);
            grown.inspect_err(|error| log::warn!("a step was refused: {error}"))?;
        }

        let start = Instant::now();
        let nodes = self.run(sequences, show).inspect_err(|error| {
            self.counters.failed();
            log::error!("a step failed: {error}");
        })?;
        let time = start.elapsed();
        self.counters
            .stepped(sequences.iter().map(|sequence| &sequence.chunk), time, nodes);
        for sequence in sequences {
            sequence.commit(time)?;
            sequence.evict_if_due();
        }
        Ok(())
    }

    /// Runs the graph; logits go to the sequences whose last chunk this was.
    fn run(&self, sequences: &mut [&mut Sequence], show: Option<&mut Vec<f32>>) -> Result<NodeTimes> {
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let Driver { runner, step } = &mut *driver;
        step.clear();
        for sequence in &*sequences {
            let chunk = &sequence.chunk;
            let tokens = &sequence.tokens()[chunk.tokens.clone()];
            step.ids.extend(tokens.iter().map(|&id| i64::from(id)));
            step.positions
                .extend(chunk.tokens.clone().map(|position| position as i64));
            step.row_offsets.push(step.ids.len() as i32);
            let end = step.ids.len() as i32;
            match show {
                Some(_) => step.logits_rows.extend(end - tokens.len() as i32..end),
                None if chunk.last => step.logits_rows.push(end - 1),
                None => {}
            }
        }
        for sequence in &mut *sequences {
            let cache = sequence.cache.take().ok_or(Error::Poisoned)?;
            step.slots.push(sequence.slot);
            step.rows.push(StepRow {
                slot: sequence.slot,
                cache,
                first_generated: sequence.chunk.first_generated,
                attention: sequence.chunk.attention,
            });
        }
        let result = catch_unwind(AssertUnwindSafe(|| runner.run(step)))
            .unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))));
        for (sequence, row) in sequences.iter_mut().zip(step.rows.drain(..)) {
            sequence.cache = Some(row.cache);
        }
        result?;

        let vocab = self.model.manifest().dimensions.vocab_size;
        let mut end = 0;
        for sequence in sequences {
            let last = sequence.chunk.last;
            end += match show {
                Some(_) => sequence.chunk.tokens.len(),
                None => usize::from(last),
            };
            sequence.logits_ready = last;
            if last {
                sequence.logits.clear();
                sequence
                    .logits
                    .extend_from_slice(&step.logits[(end - 1) * vocab..end * vocab]);
            }
        }
        if let Some(show) = show {
            std::mem::swap(show, &mut step.logits);
        }
        Ok(step.times)
    }
}

fn poison_on_bug(sequences: &mut [&mut Sequence], error: &Error) {
    if matches!(error, Error::Internal(_)) {
        for sequence in sequences {
            sequence.poisoned = true;
        }
    }
}

/// Slots of caches: an index in the lower half and a generation in the upper, so that the slot of a
/// freed sequence never names a later one.
#[derive(Default)]
pub(crate) struct Slots(Mutex<SlotTable>);

#[derive(Default)]
struct SlotTable {
    opened: u64,
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl Slots {
    pub(crate) fn open(&self) -> i64 {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.opened += 1;
        let index = table.free.pop().unwrap_or_else(|| {
            table.generations.push(0);
            (table.generations.len() - 1) as u32
        });
        i64::from(table.generations[index as usize]) << 32 | i64::from(index)
    }

    /// Slots opened so far, and those that are open now.
    fn counts(&self) -> (u64, u64) {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (table.opened, (table.generations.len() - table.free.len()) as u64)
    }

    pub(crate) fn close(&self, slot: i64) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = (slot & 0xffff_ffff) as u32;
        let generation = &mut table.generations[index as usize];
        *generation = (*generation + 1) & 0x7fff_ffff;
        table.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_is_never_handed_out_again() {
        let slots = Slots::default();
        let (a, b) = (slots.open(), slots.open());
        assert_ne!(a, b);
        slots.close(a);
        let c = slots.open();
        assert_ne!(a, c);
        assert_eq!(a & 0xffff_ffff, c & 0xffff_ffff, "the index is reused");
    }
}
