//! Forks, rewinds and views of a cache.

use std::ops::Range;
use std::sync::Arc;

use super::{Account, BlockId, CacheType, HeadCache, Held, SequenceCache, Storage};
use crate::error::Result;

/// One KV head of one layer of a cache, as it lies in memory. Entry `e` is in block
/// `blocks[e / block_entries]`, at place `e % block_entries`.
#[derive(Debug, Clone, Copy)]
pub struct CacheView<'a> {
    /// The keys of block 0, rotated; key p of block b is `b * block_stride + p * entry_stride` bytes
    /// from here. Null if nothing is held.
    pub keys: *const u8,
    /// The values of block 0, likewise.
    pub values: *const u8,
    /// The positions in the text of block 0's entries, 4 bytes apart. Those of a KV head ascend, unless the
    /// policy drops an entry at every token (h2o, tova): then an entry that went is replaced by the last one.
    pub positions: *const u32,
    /// The scales of block 0's keys, 4 bytes apart. Null if nothing is held or the type has no scales.
    pub key_scales: *const f32,
    /// Those of its values.
    pub value_scales: *const f32,
    /// The blocks of the valid entries, in order.
    pub blocks: &'a [u32],
    /// Valid entries.
    pub len: usize,
    /// Bytes from one block to the next, of keys, values, positions and scales alike.
    pub block_stride: usize,
    /// Bytes from one key (value) of a block to the next.
    pub entry_stride: usize,
    /// Entries that a block has room for.
    pub block_entries: usize,
    /// Elements of a key and of a value.
    pub head_dim: usize,
    /// Their type.
    pub cache_type: CacheType,
}

impl SequenceCache {
    /// A second cache with the same entries and queries. Blocks are shared, and each cache is
    /// promised the copies of those that both may write. The first `settled` entries of a KV head
    /// are never moved nor dropped: blocks full of them need no such promise. Contiguous buffers are
    /// copied, and so are queries, whose blocks the fork takes.
    pub(crate) fn fork(&self, settled: usize) -> Result<Self> {
        let mut fork = Self {
            shape: self.shape,
            element: self.element,
            heads: self.heads.iter().map(|_| HeadCache::EMPTY).collect(),
            windows: self.windows.clone(),
            storage: match self.storage {
                Storage::Blocks => Storage::Blocks,
                Storage::Contiguous { .. } => Storage::Contiguous {
                    layers: Vec::new(),
                    capacity: 0,
                },
            },
            pool: Arc::clone(&self.pool),
            account: Account::default(),
            query_blocks: self.query_blocks,
            queries: Vec::new(),
            taken: Vec::new(),
            peak_bytes: self.peak_bytes,
            history: self.history,
        };
        let (account, queries) = (&mut fork.account, &mut fork.queries);
        let taken = self.pool.take(account, self.queries.len(), &[], queries);
        taken.map_err(|error| fork.name_queries(error))?;
        match &self.storage {
            Storage::Blocks => self.share_blocks(&mut fork, settled)?,
            Storage::Contiguous { layers, capacity } => {
                let longest = self.heads.iter().map(HeadCache::len).max().unwrap_or(0);
                if longest > 0 {
                    fork.take_contiguous(longest)?;
                }
                let room = self.shape.blocks_per_head(longest) * self.shape.block_entries;
                let mut copies: Vec<_> = layers
                    .iter()
                    .map(|layer| layer.resized(&self.shape, *capacity, room))
                    .collect();
                if room > 0 {
                    let heads = fork.heads.chunks_exact_mut(self.shape.kv_heads);
                    for (layer, heads) in copies.iter_mut().zip(heads) {
                        layer.point(heads, &self.shape, room);
                    }
                }
                fork.storage = Storage::Contiguous {
                    layers: copies,
                    capacity: room,
                };
            }
        }
        for (head, from) in fork.heads.iter_mut().zip(&self.heads) {
            head.len = from.len;
            head.history.clone_from(&from.history);
        }
        Ok(fork)
    }

    fn share_blocks(&self, fork: &mut Self, settled: usize) -> Result<()> {
        let mut blocks = Vec::with_capacity(self.account.held());
        for head in &self.heads {
            let settled = settled.min(head.len) / self.shape.block_entries;
            for index in 0..self.shape.blocks_per_head(head.len) {
                let held = match index < settled {
                    true => Held::Reader,
                    false => Held::Writer,
                };
                blocks.push((head.blocks[index], &head.holds[index], held));
            }
        }
        self.pool.share(&mut fork.account, &blocks)?;
        let mut blocks = blocks.into_iter();
        for (index, head) in self.heads.iter().enumerate() {
            let count = self.shape.blocks_per_head(head.len);
            for (block, _, held) in blocks.by_ref().take(count) {
                fork.push_block(index, block, held);
            }
        }
        Ok(())
    }

    /// Drops the entries from text position `position` on, and the promise.
    pub(crate) fn truncate(&mut self, position: u32) -> Result<()> {
        self.reserve(0)?;
        for layer in 0..self.shape.layers {
            for kv_head in 0..self.shape.kv_heads {
                // What was written since anything was dropped is behind all else, in order.
                let mut len = self.head(layer, kv_head).len;
                while len > 0 && self.position(layer, kv_head, len - 1) >= position {
                    len -= 1;
                }
                let head = &mut self.heads[layer * self.shape.kv_heads + kv_head];
                head.len = len;
                head.history.truncate(len);
            }
        }
        self.release_empty_blocks();
        Ok(())
    }

    /// One KV head, as it lies in memory.
    pub(crate) fn view(&self, layer: usize, kv_head: usize) -> CacheView<'_> {
        let head = self.head(layer, kv_head);
        let entry_stride = self.shape.head_dim * self.element.bytes();
        let mut view = CacheView {
            keys: std::ptr::null(),
            values: std::ptr::null(),
            positions: std::ptr::null(),
            key_scales: std::ptr::null(),
            value_scales: std::ptr::null(),
            blocks: &[],
            len: head.len,
            block_stride: self.shape.block_bytes(),
            entry_stride,
            block_entries: self.page_entries(),
            head_dim: self.shape.head_dim,
            cache_type: self.element,
        };
        match self.storage {
            Storage::Blocks => {
                view.blocks = &head.blocks[..self.shape.blocks_per_head(head.len)];
                if !view.blocks.is_empty() {
                    let parts = self.addresses(0);
                    view.keys = parts.keys.as_ptr();
                    view.values = parts.values.as_ptr();
                    view.positions = parts.positions.as_ptr();
                    if let Some([keys, values]) = parts.scales {
                        view.key_scales = keys.as_ptr();
                        view.value_scales = values.as_ptr();
                    }
                }
            }
            Storage::Contiguous { capacity, .. } => {
                view.block_stride = capacity * entry_stride;
                if let (true, [keys], [values], [positions]) = (
                    head.len > 0,
                    &head.keys[..],
                    &head.values[..],
                    &head.positions[..],
                ) {
                    view.blocks = &[0];
                    view.keys = keys.as_ptr();
                    view.values = values.as_ptr();
                    view.positions = positions.as_ptr();
                }
            }
        }
        view
    }

    /// The blocks, by head and place in its table, that the next entry goes into beside entries that
    /// are there, and that are held this way.
    pub(super) fn tails(&self, held: Held) -> Vec<(usize, usize)> {
        if let Storage::Contiguous { .. } = self.storage {
            return Vec::new();
        }
        let entries = self.shape.block_entries;
        let open = |(index, head): (usize, &HeadCache)| {
            let place = head.len / entries;
            (head.len % entries > 0 && head.holds[place].get() == held).then_some((index, place))
        };
        self.heads.iter().enumerate().filter_map(open).collect()
    }

    pub(super) fn ids(&self, places: &[(usize, usize)]) -> Vec<BlockId> {
        places
            .iter()
            .map(|&(head, place)| self.heads[head].blocks[place])
            .collect()
    }

    pub(super) fn hold(&mut self, places: &[(usize, usize)], held: Held) {
        for &(head, place) in places {
            self.heads[head].holds[place].set(held);
        }
    }

    /// Makes a block that this cache is a writer of its alone, by a copy if another holds it.
    pub(super) fn own(&mut self, head: usize, place: usize) {
        let block = self.pool.own(self.heads[head].blocks[place]);
        let parts = self.addresses(block);
        let head = &mut self.heads[head];
        head.blocks[place] = block;
        head.keys[place] = parts.keys;
        head.values[place] = parts.values;
        for (table, page) in head.scales.iter_mut().zip(parts.scales.into_iter().flatten()) {
            table[place] = page;
        }
        head.positions[place] = parts.positions;
        head.holds[place].set(Held::Alone);
    }

    /// Makes the blocks of some entries of a KV head this cache's alone: before anything writes entries
    /// that are valid already. Never fails for entries that a compression may move.
    pub(crate) fn own_entries(&mut self, layer: usize, kv_head: usize, entries: Range<usize>) -> Result<()> {
        if let Storage::Contiguous { .. } = self.storage {
            return Ok(());
        }
        let head = layer * self.shape.kv_heads + kv_head;
        let size = self.shape.block_entries;
        for place in entries.start / size..entries.end.div_ceil(size) {
            match self.heads[head].holds[place].get() {
                Held::Alone => continue,
                Held::Writer => {}
                Held::Reader => {
                    let claim = [self.heads[head].blocks[place]];
                    self.pool.take(&mut self.account, 0, &claim, &mut Vec::new())?;
                }
            }
            self.own(head, place);
        }
        Ok(())
    }
}
