//! The KV cache of one sequence: per layer and KV head a table of pages, each with the keys, the
//! values and the original positions of a fixed number of entries.
//!
//! Pages are blocks of the pool (graphs of the `cached` flavour), or one page spans a KV head's part
//! of a contiguous buffer (`portable`). Everything above this room sees pages and lengths only.
//! Blocks are shared by forks; a block is this cache's alone before anything writes it.

#![allow(unsafe_code)] // page tables are raw memory

mod branch;
mod element;
mod entries;
mod grow;
mod ledger;
mod packed;
mod pool;
#[cfg(all(test, feature = "shuttle"))]
mod shuttle;
mod window;

use std::ptr::NonNull;
use std::sync::Arc;

use reasoning_rpc_core::CacheShape;
use reasoning_rpc_cpu::{KvPages, KvPagesMut, Layout, Scales, Stored};

pub use branch::CacheView;
pub use element::CacheType;
pub(crate) use ledger::{Account, BlockId};
pub(crate) use pool::{BlockPool, Held, Hold, Watcher};
pub(crate) use window::QueryWindow;

use crate::error::Result;

/// One KV head of one layer.
pub(crate) struct HeadCache {
    keys: Vec<NonNull<u8>>,
    values: Vec<NonNull<u8>>,
    /// Of the keys and of the values; empty if the element type has no scales.
    scales: [Vec<NonNull<f32>>; 2],
    positions: Vec<NonNull<u32>>,
    blocks: Vec<BlockId>,
    /// How each block is held.
    holds: Vec<Hold>,
    len: usize,
    /// A float of the policy's for each entry, if it keeps any.
    history: Vec<f32>,
    /// What the history becomes when the step that runs is committed, if it changes it.
    next_history: Vec<f32>,
}

impl HeadCache {
    const EMPTY: Self = Self {
        keys: Vec::new(),
        values: Vec::new(),
        scales: [Vec::new(), Vec::new()],
        positions: Vec::new(),
        blocks: Vec::new(),
        holds: Vec::new(),
        len: 0,
        history: Vec::new(),
        next_history: Vec::new(),
    };

    /// Valid entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The policy's float of each entry; empty if it keeps none.
    pub(crate) fn history(&self) -> &[f32] {
        &self.history
    }
}

/// Where the parts of one block begin.
struct BlockParts {
    keys: NonNull<u8>,
    values: NonNull<u8>,
    /// Of the keys and of the values.
    scales: Option<[NonNull<f32>; 2]>,
    positions: NonNull<u32>,
}

enum Storage {
    Blocks,
    /// Keys and values of every layer, `[kv_heads][capacity][head_dim]` each, and the positions of
    /// every layer, `[kv_heads][capacity]`.
    Contiguous {
        layers: Vec<ContiguousLayer>,
        capacity: usize,
    },
}

#[derive(Default)]
struct ContiguousLayer {
    keys: Vec<f32>,
    values: Vec<f32>,
    positions: Vec<u32>,
}

/// The cache of one sequence.
pub(crate) struct SequenceCache {
    shape: CacheShape,
    element: CacheType,
    heads: Vec<HeadCache>,
    windows: Vec<QueryWindow>,
    storage: Storage,
    pool: Arc<BlockPool>,
    account: Account,
    /// Blocks that the stored queries count as. Their memory stays untouched: queries lie elsewhere.
    query_blocks: usize,
    /// Those, from the first step on.
    queries: Vec<BlockId>,
    /// Blocks on their way from the pool to the tables; empty between calls.
    taken: Vec<BlockId>,
    peak_bytes: usize,
    /// Whether heads have histories.
    history: bool,
}

/// What a policy has a cache keep beside the entries.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Kept {
    /// Tokens whose queries are remembered.
    pub window: usize,
    /// Blocks that they count as in the budget.
    pub query_blocks: usize,
    /// Whether each entry has a float of the policy's.
    pub history: bool,
    /// Floats of the moments of each KV head's queries.
    pub moments: usize,
}

impl ContiguousLayer {
    /// A copy with room for `to` entries in place of `from`.
    fn resized(&self, shape: &CacheShape, from: usize, to: usize) -> Self {
        fn spread<T: Copy + Default>(old: &[T], heads: usize, from: usize, to: usize) -> Vec<T> {
            let mut new = vec![T::default(); heads * to];
            if from > 0 && to > 0 {
                for (new, old) in new.chunks_exact_mut(to).zip(old.chunks_exact(from)) {
                    let count = from.min(to);
                    new[..count].copy_from_slice(&old[..count]);
                }
            }
            new
        }
        let (heads, width) = (shape.kv_heads, shape.head_dim);
        Self {
            keys: spread(&self.keys, heads, from * width, to * width),
            values: spread(&self.values, heads, from * width, to * width),
            positions: spread(&self.positions, heads, from, to),
        }
    }

    /// Makes each head's part of the buffers its only page.
    fn point(&mut self, heads: &mut [HeadCache], shape: &CacheShape, capacity: usize) {
        for (index, head) in heads.iter_mut().enumerate() {
            let start = index * capacity * shape.head_dim;
            head.keys = vec![NonNull::from(&mut self.keys[start..]).cast()];
            head.values = vec![NonNull::from(&mut self.values[start..]).cast()];
            head.positions = vec![NonNull::from(&mut self.positions[index * capacity..]).cast()];
        }
    }
}

impl SequenceCache {
    /// An empty cache. `query_width` = num_heads * head_dim.
    pub(crate) fn new(
        pool: Arc<BlockPool>,
        shape: CacheShape,
        element: CacheType,
        contiguous: bool,
        query_width: usize,
        kept: Kept,
    ) -> Self {
        // Those of a whole interval are many, and their scores as good in fp16; those of a window are few.
        let half = kept.query_blocks > 0 && shape.query_number_bytes() < size_of::<f32>();
        Self {
            shape,
            element,
            heads: (0..shape.layers * shape.kv_heads)
                .map(|_| HeadCache::EMPTY)
                .collect(),
            windows: (0..shape.layers)
                .map(|_| QueryWindow::new(kept.window, query_width, half, kept.moments * shape.kv_heads))
                .collect(),
            storage: if contiguous {
                Storage::Contiguous {
                    layers: (0..shape.layers).map(|_| ContiguousLayer::default()).collect(),
                    capacity: 0,
                }
            } else {
                Storage::Blocks
            },
            pool,
            account: Account::default(),
            query_blocks: kept.query_blocks,
            queries: Vec::new(),
            taken: Vec::new(),
            peak_bytes: 0,
            history: kept.history,
        }
    }

    pub(crate) fn shape(&self) -> &CacheShape {
        &self.shape
    }

    pub(crate) fn element(&self) -> CacheType {
        self.element
    }

    pub(crate) fn window_mut(&mut self, layer: usize) -> &mut QueryWindow {
        &mut self.windows[layer]
    }

    pub(crate) fn window(&self, layer: usize) -> &QueryWindow {
        &self.windows[layer]
    }

    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> &HeadCache {
        &self.heads[layer * self.shape.kv_heads + kv_head]
    }

    /// Bytes held now, those of stored queries included.
    pub(crate) fn bytes(&self) -> usize {
        self.account.held() * self.shape.block_bytes()
    }

    /// The most bytes held at any moment.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// Puts a block behind a head's last one.
    fn push_block(&mut self, head: usize, block: BlockId, held: Held) {
        let parts = self.addresses(block);
        let head = &mut self.heads[head];
        head.blocks.push(block);
        head.holds.push(Hold::new(held));
        head.keys.push(parts.keys);
        head.values.push(parts.values);
        for (table, page) in head.scales.iter_mut().zip(parts.scales.into_iter().flatten()) {
            table.push(page);
        }
        head.positions.push(parts.positions);
    }

    /// Where the parts of a block begin.
    fn addresses(&self, block: BlockId) -> BlockParts {
        let entries = self.shape.block_entries;
        let plane = entries * self.shape.head_dim * self.element.bytes();
        let scales = entries * self.element.scale_bytes();
        let keys = self.pool.address(block);
        // SAFETY: a block has a plane of keys, one of values, the keys' scales and the values' if there are
        // any, and the positions, in this order (CacheShape::block_bytes), so all offsets lie inside it.
        // Blocks are aligned to cache lines and have a multiple of 16 entries, so each part is, too.
        unsafe {
            BlockParts {
                keys,
                values: keys.add(plane),
                scales: (scales > 0)
                    .then(|| [keys.add(2 * plane).cast(), keys.add(2 * plane + scales).cast()]),
                positions: keys.add(2 * (plane + scales)).cast(),
            }
        }
    }

    /// The contiguous buffers of a layer, keys and values, and the entries that each KV head's part
    /// has room for; none for a cache of blocks.
    pub(crate) fn contiguous(&mut self, layer: usize) -> Option<(NonNull<f32>, NonNull<f32>, usize)> {
        match &mut self.storage {
            Storage::Blocks => None,
            Storage::Contiguous { layers, capacity } => {
                let layer = &mut layers[layer];
                Some((
                    NonNull::from(layer.keys.as_mut_slice()).cast(),
                    NonNull::from(layer.values.as_mut_slice()).cast(),
                    *capacity,
                ))
            }
        }
    }

    fn layout(&self) -> Layout {
        Layout::contiguous(self.page_entries(), self.shape.head_dim)
    }

    fn page_entries(&self) -> usize {
        match &self.storage {
            Storage::Blocks => self.shape.block_entries,
            Storage::Contiguous { capacity, .. } => *capacity,
        }
    }

    /// The pages of a KV head with `len` entries, those of a step that is not committed yet
    /// included, to read.
    ///
    /// # Safety
    /// The first `len` entries are written, and nothing writes them while the view lives.
    pub(crate) unsafe fn pages<E: Stored>(
        &self,
        layer: usize,
        kv_head: usize,
        len: usize,
    ) -> Result<KvPages<'_, E>> {
        debug_assert_eq!(E::NAME, self.element_name());
        let head = self.head(layer, kv_head);
        let (keys, values) = (typed(&head.keys), typed(&head.values));
        // SAFETY: every page has room for page_entries() entries of head_dim elements of this type
        // and lives as long as `self` holds it; the rest is the caller's promise.
        let pages = unsafe { KvPages::with_scales(keys, values, self.scales(head), self.layout(), len) };
        Ok(pages?)
    }

    /// The valid entries of a KV head, to read.
    pub(crate) fn valid_pages<E: Stored>(&self, layer: usize, kv_head: usize) -> Result<KvPages<'_, E>> {
        // SAFETY: entries below `len` were committed; they are written through `pages_mut` only,
        // whose callers promise that nothing reads them meanwhile.
        unsafe { self.pages(layer, kv_head, self.head(layer, kv_head).len) }
    }

    /// The pages of a KV head with its valid entries, to write, through a shared reference: the operator's workers write
    /// different KV heads of one cache at the same time.
    ///
    /// # Safety
    /// Nothing else reads or writes this KV head's pages of this cache while the view lives, and what is
    /// written lies in blocks that are its own: `grow` sees to it for new entries, `own_entries` for old.
    pub(crate) unsafe fn pages_mut<E: Stored>(
        &self,
        layer: usize,
        kv_head: usize,
    ) -> Result<KvPagesMut<'_, E>> {
        debug_assert_eq!(E::NAME, self.element_name());
        let head = self.head(layer, kv_head);
        let (keys, values) = (typed(&head.keys), typed(&head.values));
        // SAFETY: as in `pages`; no page occurs twice in a cache.
        let pages =
            unsafe { KvPagesMut::with_scales(keys, values, self.scales(head), self.layout(), head.len) };
        Ok(pages?)
    }

    fn scales<'a>(&self, head: &'a HeadCache) -> Option<Scales<'a>> {
        (self.element.scale_bytes() > 0).then_some(Scales {
            keys: &head.scales[0],
            values: &head.scales[1],
            key_stride: 1,
            value_stride: 1,
        })
    }

    /// The element type as the CPU's loops call it.
    fn element_name(&self) -> &'static str {
        match self.element {
            CacheType::F32 => f32::NAME,
            CacheType::F16 => half::f16::NAME,
            CacheType::Bf16 => half::bf16::NAME,
            CacheType::I8 => i8::NAME,
        }
    }

    /// The original position of an entry.
    pub(crate) fn position(&self, layer: usize, kv_head: usize, entry: usize) -> u32 {
        let head = self.head(layer, kv_head);
        debug_assert!(entry < head.len);
        let (page, offset) = (entry / self.page_entries(), entry % self.page_entries());
        // SAFETY: the entry is below `len`, so it was written by `commit` and lies in a held page.
        unsafe { head.positions[page].add(offset).read() }
    }

    /// The original positions of a KV head's entries, in their order.
    pub(crate) fn positions(&self, layer: usize, kv_head: usize) -> impl Iterator<Item = u32> {
        let (head, page_entries) = (self.head(layer, kv_head), self.page_entries());
        head.positions.iter().enumerate().flat_map(move |(page, first)| {
            let count = head.len.saturating_sub(page * page_entries).min(page_entries);
            // SAFETY: the positions of valid entries are written, by `&mut self` alone.
            unsafe { std::slice::from_raw_parts(first.as_ptr().cast_const(), count) }
                .iter()
                .copied()
        })
    }

    /// Remembers the queries of so many tokens from now on, whatever the policy wants.
    #[cfg(test)]
    pub(crate) fn remember(&mut self, tokens: usize, query_width: usize) {
        for window in &mut self.windows {
            *window = QueryWindow::new(tokens, query_width, false, window.moments().len());
        }
    }

    /// Bytes of the whole pool that are promised and not used yet.
    #[cfg(test)]
    pub(crate) fn promised(&self) -> usize {
        self.pool.counts().1 * self.shape.block_bytes()
    }

    /// The key and the value of a valid entry, as float32.
    #[cfg(test)]
    pub(crate) fn entry_f32(&self, layer: usize, kv_head: usize, entry: usize) -> (Vec<f32>, Vec<f32>) {
        let head = self.head(layer, kv_head);
        assert!(entry < head.len);
        let (page, entry) = (entry / self.page_entries(), entry % self.page_entries());
        let read = |pages: &[NonNull<u8>], scales: &[NonNull<f32>]| {
            let numbers = entry * self.shape.head_dim..(entry + 1) * self.shape.head_dim;
            let at = pages[page];
            // SAFETY: the entry is valid, so its page has been written there, and its scale, if there is one.
            numbers
                .map(|i| unsafe {
                    match self.element {
                        CacheType::F32 => at.cast::<f32>().add(i).read(),
                        CacheType::F16 => at.cast::<half::f16>().add(i).read().to_f32(),
                        CacheType::Bf16 => at.cast::<half::bf16>().add(i).read().to_f32(),
                        CacheType::I8 => {
                            f32::from(at.cast::<i8>().add(i).read()) * scales[page].add(entry).read()
                        }
                    }
                })
                .collect()
        };
        let [keys, values] = &head.scales;
        (read(&head.keys, keys), read(&head.values, values))
    }

    /// Entries of a KV head whose original position is below `position`. Entries are in the order
    /// of their positions; where single ones are dropped ([`drop_entry`](Self::drop_entry)), they are not, and
    /// nobody asks.
    pub(crate) fn entries_before(&self, layer: usize, kv_head: usize, position: u32) -> usize {
        let (mut low, mut high) = (0, self.head(layer, kv_head).len);
        while low < high {
            let middle = low.midpoint(high);
            if self.position(layer, kv_head, middle) < position {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

impl Drop for SequenceCache {
    fn drop(&mut self) {
        // A promise can always be taken back.
        let _ = self.pool.reserve(&mut self.account, 0, &[]);
        for head in &self.heads {
            let holds = head.holds.iter().map(Hold::get);
            let held: Vec<_> = head.blocks.iter().copied().zip(holds).collect();
            self.pool.let_go(&mut self.account, &held);
        }
        let queries: Vec<_> = self.queries.iter().map(|&id| (id, Held::Alone)).collect();
        self.pool.let_go(&mut self.account, &queries);
        self.pool.tell_watchers();
    }
}

fn typed<A, E>(pages: &[NonNull<A>]) -> &[NonNull<E>] {
    // SAFETY: NonNull of one sized type and of another have the same layout.
    unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), pages.len()) }
}

// SAFETY: the page tables point into buffers that this cache alone has, or into blocks, which are not
// bound to a thread and which nobody writes while more than one cache holds them.
unsafe impl Send for SequenceCache {}
// SAFETY: shared access reads only, but for `pages_mut`, whose callers promise exclusivity.
unsafe impl Sync for SequenceCache {}
