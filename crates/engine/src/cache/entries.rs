//! Entries that come, move, change and go: what a step and a compression do to a cache.

#![allow(unsafe_code)] // page tables are raw memory

use reasoning_rpc_cpu::{self as cpu, PositionPagesMut, Simd, Stored};

use super::{SequenceCache, Storage};
use crate::error::{Error, Result};

impl SequenceCache {
    /// Counts entries whose keys and values a step has written behind the valid ones.
    pub(crate) fn commit(&mut self, positions: std::ops::Range<u32>) {
        let page_entries = self.page_entries();
        for head in &mut self.heads {
            for position in positions.clone() {
                let (page, offset) = (head.len / page_entries, head.len % page_entries);
                // SAFETY: `grow` made room for these entries before the step.
                unsafe { head.positions[page].add(offset).write(position) };
                head.len += 1;
            }
            if self.history {
                if !head.next_history.is_empty() {
                    std::mem::swap(&mut head.history, &mut head.next_history);
                    head.next_history.clear();
                }
                head.history.resize(head.len, 0.0);
            }
        }
    }

    /// Moves the entries `kept` (ascending; each at or behind its destination) of a KV head to
    /// `first` and what follows, keys, values and positions, and drops the rest from `first` on.
    pub(crate) fn compact<E: Stored>(
        &mut self,
        simd: Simd,
        layer: usize,
        kv_head: usize,
        first: usize,
        kept: &[u32],
    ) -> Result<()> {
        let moved = (first..).zip(kept).find(|&(to, &from)| to != from as usize);
        if let Some((to, _)) = moved {
            self.own_entries(layer, kv_head, to..first + kept.len())?;
        }
        // SAFETY: `self` is borrowed exclusively, and the blocks of what moves are its own.
        let mut pages = unsafe { self.pages_mut::<E>(layer, kv_head) }?;
        let len = cpu::compact(simd, &mut pages, first, kept)?;
        let page_entries = self.page_entries();
        let head = &mut self.heads[layer * self.shape.kv_heads + kv_head];
        // SAFETY: the positions of all valid entries are written; those that move, in blocks that only
        // this cache has.
        let positions = unsafe { PositionPagesMut::new(&head.positions, page_entries, head.len) };
        cpu::compact_positions(&mut positions?, first, kept)?;
        if self.history {
            for (to, &from) in (first..).zip(kept) {
                head.history[to] = head.history[from as usize];
            }
            head.history.truncate(len);
        }
        head.len = len;
        Ok(())
    }

    /// The buffer for [`set_next_history`](Self::set_next_history).
    pub(crate) fn take_next_history(&mut self, layer: usize, kv_head: usize) -> Vec<f32> {
        std::mem::take(&mut self.heads[layer * self.shape.kv_heads + kv_head].next_history)
    }

    /// What the history of a KV head becomes when the step that runs is committed.
    pub(crate) fn set_next_history(&mut self, layer: usize, kv_head: usize, history: Vec<f32>) {
        self.heads[layer * self.shape.kv_heads + kv_head].next_history = history;
    }

    /// Drops an entry: the last one takes its place.
    pub(crate) fn drop_entry<E: Stored>(
        &mut self,
        simd: Simd,
        layer: usize,
        kv_head: usize,
        entry: usize,
    ) -> Result<()> {
        let Some(last) = self.head(layer, kv_head).len.checked_sub(1) else {
            return Err(Error::Internal("an entry of an empty cache was dropped".into()));
        };
        if entry < last {
            self.own_entries(layer, kv_head, entry..entry + 1)?;
            // SAFETY: `self` is borrowed exclusively, and the block of what is written is its own.
            let mut pages = unsafe { self.pages_mut::<E>(layer, kv_head) }?;
            cpu::move_entry(simd, &mut pages, last, entry)?;
        }
        let (position, page_entries) = (self.position(layer, kv_head, last), self.page_entries());
        let head = &mut self.heads[layer * self.shape.kv_heads + kv_head];
        if entry < last {
            let (page, offset) = (entry / page_entries, entry % page_entries);
            // SAFETY: the entry is valid, and its block is this cache's alone.
            unsafe { head.positions[page].add(offset).write(position) };
        }
        if entry < head.history.len() {
            head.history.swap_remove(entry);
        }
        head.len = last;
        Ok(())
    }

    /// Makes the policy's floats of a KV head 0 again.
    pub(crate) fn clear_history(&mut self, layer: usize, kv_head: usize) {
        let head = &mut self.heads[layer * self.shape.kv_heads + kv_head];
        head.history.fill(0.0);
    }

    /// Sets the policy's float of an entry.
    pub(crate) fn set_history(&mut self, layer: usize, kv_head: usize, entry: usize, value: f32) {
        let head = &mut self.heads[layer * self.shape.kv_heads + kv_head];
        if let Some(place) = head.history.get_mut(entry) {
            *place = value;
        }
    }

    /// Writes keys and values anew: a row of `2 * head_dim` numbers, key then value, to each of `entries`,
    /// which ascend and are of candidates of a compression.
    pub(crate) fn rewrite<E: Stored>(
        &mut self,
        layer: usize,
        kv_head: usize,
        entries: &[u32],
        rows: &[f32],
    ) -> Result<()> {
        for &entry in entries {
            self.own_entries(layer, kv_head, entry as usize..entry as usize + 1)?;
        }
        // SAFETY: `self` is borrowed exclusively, and the blocks of what is written are its own.
        let mut pages = unsafe { self.pages_mut::<E>(layer, kv_head) }?;
        Ok(cpu::write_rows(&mut pages, entries.iter().copied(), rows)?)
    }

    /// Gives back the blocks that hold no entry any more.
    pub(crate) fn release_empty_blocks(&mut self) {
        if let Storage::Contiguous { .. } = self.storage {
            return;
        }
        let mut freed = Vec::new();
        for head in &mut self.heads {
            let needed = self.shape.blocks_per_head(head.len).min(head.blocks.len());
            let holds = head.holds.drain(needed..).map(|hold| hold.get());
            freed.extend(head.blocks.drain(needed..).zip(holds));
            head.keys.truncate(needed);
            head.values.truncate(needed);
            head.scales.iter_mut().for_each(|table| table.truncate(needed));
            head.positions.truncate(needed);
        }
        if !freed.is_empty() {
            self.pool.let_go(&mut self.account, &freed);
            self.pool.tell_watchers();
        }
    }
}
