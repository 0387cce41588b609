//! Room for entries: what a cache needs, is promised and takes of the pool.

use std::collections::HashSet;

use super::{Held, Hold, SequenceCache, Storage};
use crate::error::{Error, Result};

impl SequenceCache {
    /// Blocks for `entries` entries per KV head, and for the queries that are stored beside them.
    fn blocks(&self, entries: usize) -> usize {
        match entries {
            0 => 0,
            _ => self.shape.blocks(entries) + self.query_blocks,
        }
    }

    /// Bytes of them, and those of the queries alone.
    pub(crate) fn needed_bytes(&self, entries: usize) -> (usize, usize) {
        let block = self.shape.block_bytes();
        (self.blocks(entries) * block, self.query_blocks * block)
    }

    /// Says in a refusal what of it the queries are, if they were among what was asked for.
    pub(super) fn name_queries(&self, mut error: Error) -> Error {
        if let Error::Budget { queries, .. } = &mut error {
            *queries = (self.query_blocks - self.queries.len()) * self.shape.block_bytes();
        }
        error
    }

    /// Promises this cache the blocks for `entries` entries per KV head, and those of its queries.
    pub(crate) fn reserve(&mut self, entries: usize) -> Result<()> {
        let claims = match entries {
            0 => Vec::new(),
            _ => self.tails(Held::Reader),
        };
        let ids = self.ids(&claims);
        let before = self.account.promise();
        let blocks = self.blocks(entries);
        let reserved = self.pool.reserve(&mut self.account, blocks, &ids);
        reserved.map_err(|error| self.name_queries(error))?;
        self.hold(&claims, Held::Writer);
        if self.account.promise() < before {
            self.pool.tell_watchers();
        }
        if let Storage::Blocks = self.storage {
            self.make_room(entries);
        }
        Ok(())
    }

    /// Takes the memory of tables for `entries` entries now, so that growing up to there allocates nothing.
    fn make_room(&mut self, entries: usize) {
        fn room<T>(table: &mut Vec<T>, len: usize) {
            table.reserve(len.saturating_sub(table.len()));
        }
        let places = self.shape.blocks_per_head(entries);
        let queries = self.query_blocks - self.queries.len();
        self.queries.reserve(queries);
        self.taken.reserve(self.heads.len() + queries);
        for head in &mut self.heads {
            room(&mut head.keys, places);
            room(&mut head.values, places);
            room(&mut head.positions, places);
            room(&mut head.blocks, places);
            room(&mut head.holds, places);
            if self.element.scale_bytes() > 0 {
                head.scales.iter_mut().for_each(|table| room(table, places));
            }
            if self.history {
                room(&mut head.history, entries);
            }
        }
    }

    /// Whether [`reserve`](Self::reserve) would succeed now.
    pub(crate) fn fits(&self, entries: usize) -> bool {
        let claims = self.ids(&self.tails(Held::Reader));
        self.pool.fits(&self.account, self.blocks(entries), &claims)
    }

    /// Whether these caches hold and are promised all that anyone holds or is promised of their pool: then
    /// nothing comes back that they do not give back.
    pub(crate) fn hold_everything<'a>(caches: impl Iterator<Item = &'a Self>) -> bool {
        let (mut blocks, mut promised, mut pool) = (HashSet::new(), 0, None);
        for cache in caches {
            blocks.extend(cache.heads.iter().flat_map(|head| &head.blocks).copied());
            blocks.extend(&cache.queries);
            promised += cache.account.promise();
            pool = Some(&cache.pool);
        }
        pool.is_some_and(|pool| pool.is_all_there_is(&blocks, promised))
    }

    /// Makes room for `tokens` more entries in every KV head. Takes nothing if that does not fit.
    pub(crate) fn grow(&mut self, tokens: usize) -> Result<()> {
        self.grow_each(|_| tokens)
    }

    /// [`grow`](Self::grow) by as many entries for each KV head as `tokens` says for its index, layer by layer.
    pub(super) fn grow_each(&mut self, tokens: impl Fn(usize) -> usize) -> Result<()> {
        // Of a step that failed.
        self.heads.iter_mut().for_each(|head| head.next_history.clear());
        match self.storage {
            Storage::Blocks => self.grow_blocks(tokens),
            Storage::Contiguous { capacity, .. } => {
                let needed = self.heads.iter().enumerate();
                match needed
                    .map(|(index, head)| head.len + tokens(index))
                    .max()
                    .unwrap_or(0)
                {
                    needed if needed > capacity => self.grow_contiguous(needed, capacity),
                    _ => Ok(()),
                }
            }
        }?;
        self.peak_bytes = self.peak_bytes.max(self.bytes());
        Ok(())
    }

    fn grow_blocks(&mut self, tokens: impl Fn(usize) -> usize) -> Result<()> {
        let missing = |cache: &Self, index: usize| {
            let head = &cache.heads[index];
            let needed = cache.shape.blocks_per_head(head.len + tokens(index));
            needed.saturating_sub(head.blocks.len())
        };
        let queries = self.query_blocks - self.queries.len();
        let entries: usize = (0..self.heads.len()).map(|index| missing(self, index)).sum();
        let count = queries + entries;
        let claims = self.tails(Held::Reader);
        if count > 0 || !claims.is_empty() {
            let ids = self.ids(&claims);
            let mut taken = std::mem::take(&mut self.taken);
            let result = self.pool.take(&mut self.account, count, &ids, &mut taken);
            let mut blocks = taken.drain(..);
            if result.is_ok() {
                self.hold(&claims, Held::Writer);
                self.queries.extend(blocks.by_ref().take(queries));
                for index in 0..self.heads.len() {
                    let count = missing(self, index);
                    for block in blocks.by_ref().take(count) {
                        self.push_block(index, block, Held::Alone);
                    }
                }
            }
            drop(blocks);
            self.taken = taken;
            result.map_err(|error| self.name_queries(error))?;
        }
        for (head, block) in self.tails(Held::Writer) {
            self.own(head, block);
        }
        Ok(())
    }

    /// A contiguous buffer moves when it grows, so it at least doubles, unless only what is needed fits; what was
    /// reserved is taken at once.
    fn grow_contiguous(&mut self, needed: usize, capacity: usize) -> Result<()> {
        let shape = self.shape;
        let per_block = shape.layers * shape.kv_heads;
        let reserved = self.account.reserved() / per_block * shape.block_entries;
        let wanted = needed.max(if needed <= reserved {
            reserved
        } else {
            2 * capacity
        });
        let wanted = match self.take_contiguous(wanted) {
            Err(_) if wanted > needed => {
                self.take_contiguous(needed)?;
                needed
            }
            taken => {
                taken?;
                wanted
            }
        };
        let wanted = shape.blocks_per_head(wanted) * shape.block_entries;
        let Storage::Contiguous { layers, capacity } = &mut self.storage else {
            return Err(Error::Internal("a cache of blocks has no buffer".into()));
        };
        for (layer, heads) in layers.iter_mut().zip(self.heads.chunks_exact_mut(shape.kv_heads)) {
            *layer = layer.resized(&shape, *capacity, wanted);
            layer.point(heads, &shape, wanted);
        }
        *capacity = wanted;
        Ok(())
    }

    /// Takes blocks for a buffer of `entries` entries, for their count alone: the pool's memory stays
    /// untouched.
    pub(super) fn take_contiguous(&mut self, entries: usize) -> Result<()> {
        let count = self.shape.blocks(entries) - self.account.held();
        let mut taken = Vec::with_capacity(count);
        self.pool.take(&mut self.account, count, &[], &mut taken)?;
        let counted = &mut self.heads[0];
        counted.blocks.extend(taken);
        counted.holds.extend((0..count).map(|_| Hold::new(Held::Alone)));
        Ok(())
    }
}
