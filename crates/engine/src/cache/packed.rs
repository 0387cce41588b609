//! Entries in and out of a cache without their blocks, as a saved sequence has them.

use std::ptr::NonNull;

use super::{HeadCache, SequenceCache, typed};
use crate::error::{Error, Result};

// Saved sequences are little-endian, and entries are copied as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// The tables of a KV head in the order of [`SequenceCache::packed`], each with the bytes of one entry in
/// it; `vector` is that of a key or value. The tables of scales are empty if there are none.
fn planes(head: &HeadCache, vector: usize) -> [(&[NonNull<u8>], usize); 5] {
    let [keys, values] = &head.scales;
    [
        (&head.keys, vector),
        (&head.values, vector),
        (typed(keys), size_of::<f32>()),
        (typed(values), size_of::<f32>()),
        (typed(&head.positions), size_of::<u32>()),
    ]
}

impl SequenceCache {
    /// Valid entries of all layers and KV heads together.
    pub(crate) fn entries(&self) -> usize {
        self.heads.iter().map(|head| head.len).sum()
    }

    /// The bytes of a KV head's keys, then of its values, of the scales of the keys and of the values if
    /// there are any, and of its positions, in entry order.
    pub(crate) fn packed(&self, layer: usize, kv_head: usize) -> impl Iterator<Item = &[u8]> {
        let head = self.head(layer, kv_head);
        let entry = self.shape.head_dim * self.element.bytes();
        let (len, page_entries) = (head.len, self.page_entries());
        planes(head, entry).into_iter().flat_map(move |(table, width)| {
            table.iter().enumerate().map(move |(page, &data)| {
                let entries = len.saturating_sub(page * page_entries).min(page_entries);
                // SAFETY: the valid entries of a held page are written, their scales and positions, too;
                // writers need `&mut self` or promise that nothing reads.
                unsafe { std::slice::from_raw_parts(data.as_ptr().cast_const(), entries * width) }
            })
        })
    }

    /// Fills an empty cache with `lens` entries, a number for each KV head of each layer, of which `bytes` has, KV head
    /// by KV head, what [`packed`](Self::packed) gives.
    pub(crate) fn unpack(&mut self, lens: &[usize], bytes: &[u8]) -> Result<()> {
        let entry = self.shape.head_dim * self.element.bytes();
        let entries: usize = lens.iter().sum();
        let fits = lens.len() == self.heads.len() && bytes.len() == entries * self.shape.entry_bytes();
        if self.entries() != 0 || !fits {
            return Err(Error::Internal(format!(
                "{} bytes of entries do not fit the cache",
                bytes.len()
            )));
        }
        if entries == 0 {
            return Ok(());
        }
        self.grow_each(|index| lens[index])?;
        let page_entries = self.page_entries();
        let mut rest = bytes;
        for (head, &len) in self.heads.iter_mut().zip(lens) {
            for (table, width) in planes(head, entry) {
                if table.is_empty() {
                    continue;
                }
                let (mut plane, after) = rest.split_at(len * width);
                for page in table {
                    let (part, next) = plane.split_at(plane.len().min(page_entries * width));
                    // SAFETY: the page has room for page_entries entries of this width, and is this cache's.
                    unsafe { page.as_ptr().copy_from_nonoverlapping(part.as_ptr(), part.len()) };
                    plane = next;
                }
                rest = after;
            }
            head.len = len;
        }
        Ok(())
    }

    /// Whether the policy keeps a float of each entry.
    pub(crate) fn has_history(&self) -> bool {
        self.history
    }

    /// The policy's floats of all entries, KV head by KV head; none, if it keeps none.
    pub(crate) fn set_histories(&mut self, histories: Vec<Vec<f32>>) {
        for (head, history) in self.heads.iter_mut().zip(histories) {
            head.history = history;
        }
    }

    /// Makes the policy's floats, and moments, 0 again.
    pub(crate) fn forget_history(&mut self) {
        self.heads.iter_mut().for_each(|head| head.history.fill(0.0));
        self.forget_moments();
    }

    /// Makes moments 0 again.
    pub(crate) fn forget_moments(&mut self) {
        self.windows
            .iter_mut()
            .for_each(|window| window.moments_mut().fill(0.0));
    }

    /// Takes over what another cache of the same text held at most.
    pub(crate) fn raise_peak(&mut self, bytes: usize) {
        self.peak_bytes = self.peak_bytes.max(bytes);
    }
}
