//! Tensors of a layer, checked, and where a KV head's pages are in them.

use std::ffi::c_void;
use std::ptr::NonNull;

use reasoning_rpc_cpu::{KvPages, KvPagesMut, Layout, Scales, Stored};

use crate::batch::Batched;
use crate::compressor::Compressor;
use crate::error::{Result, refuse};
use crate::types::{Layer, Tensor};
use crate::workspace::Carver;

/// A tensor whose address and strides were checked.
#[derive(Clone, Copy)]
pub(crate) struct View<T> {
    data: NonNull<T>,
    strides: [usize; 3],
    width: usize,
}

/// Checks that an address is one of `T` and that strides for `counts` are not negative and within the
/// address space. Returns the elements from the first to the last.
fn span<T>(
    what: &str,
    data: *const c_void,
    strides: [i64; 3],
    counts: [usize; 3],
    width: usize,
) -> Result<([usize; 3], usize)> {
    if data.is_null() || !data.cast::<T>().is_aligned() {
        let expected = format_args!("an address that is a multiple of {}", align_of::<T>());
        return refuse(what, expected, format_args!("{data:?}"));
    }
    let most = isize::MAX as usize / 8;
    let mut total = width;
    let mut checked = [0; 3];
    for ((stride, count), checked) in strides.into_iter().zip(counts).zip(&mut checked) {
        let last = usize::try_from(stride)
            .ok()
            .and_then(|stride| stride.checked_mul(count.saturating_sub(1)))
            .and_then(|last| last.checked_add(total))
            .filter(|&last| last <= most);
        let Some(last) = last else {
            return refuse(
                format_args!("{what}: stride"),
                "no negative one, and all within the address space",
                format_args!("{stride} for {count}"),
            );
        };
        total = last;
        *checked = stride as usize;
    }
    Ok((checked, total))
}

/// Checks that no two of the parts of `width` elements overlap: each stride, from the smallest up, is at
/// least what those before it span. (Some odd layouts without overlap are refused too.)
fn apart(what: &str, parts: &mut [(usize, usize)], width: usize) -> Result<()> {
    parts.sort_unstable();
    let mut extent = width;
    for &(stride, count) in parts.iter().filter(|(_, count)| *count > 1) {
        if stride < extent {
            return refuse(
                format_args!("{what}: stride"),
                format_args!("at least {extent}, so that entries do not overlap"),
                stride,
            );
        }
        extent = extent.saturating_add(stride.saturating_mul(count - 1));
    }
    Ok(())
}

impl<T> View<T> {
    fn new(what: &str, tensor: &Tensor, counts: [usize; 3], width: usize) -> Result<(Self, usize)> {
        let (mut strides, span) = span::<T>(what, tensor.data, tensor.strides, counts, width)?;
        let mut parts = [0, 1, 2].map(|i| (strides[i], counts[i]));
        apart(what, &mut parts, width)?;
        // Of one entry the stride does not matter, but is to look like one.
        strides[2] = strides[2].max(width);
        let Some(data) = NonNull::new(tensor.data.cast()) else {
            return refuse(what, "an address", "null");
        };
        Ok((Self { data, strides, width }, span))
    }

    fn at(&self, block: usize, kv_head: usize) -> NonNull<T> {
        // Within the tensor, and so not null.
        let offset = block * self.strides[0] + kv_head * self.strides[1];
        NonNull::new(self.data.as_ptr().wrapping_add(offset)).unwrap_or(self.data)
    }

    /// Copies all entries of all KV heads of a block to another.
    ///
    /// # Safety
    /// Both blocks are the tensor's, `to` is not used by anyone else, `from` not written.
    unsafe fn copy_block(&self, from: usize, to: usize, kv_heads: usize, entries: usize) {
        for kv_head in 0..kv_heads {
            let (from, to) = (self.at(from, kv_head).as_ptr(), self.at(to, kv_head).as_ptr());
            let (rows, count) = match self.strides[2] == self.width {
                true => (1, entries * self.width),
                false => (entries, self.width),
            };
            for row in 0..rows {
                let at = row * self.strides[2];
                // SAFETY: the caller's contract; different blocks do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), count) };
            }
        }
    }
}

/// The tensors of a layer.
pub(crate) struct Views<E> {
    keys: View<E>,
    values: View<E>,
    scales: Option<[View<f32>; 2]>,
    history: Option<View<f32>>,
    kv_heads: usize,
    entries: usize,
    head_dim: usize,
}

/// Checks that keys and values, of elements of `size` bytes, do not share memory.
fn disjoint<E>(keys: (&View<E>, usize), values: (&View<E>, usize), counts: [usize; 3]) -> Result<()> {
    let (k, v) = (keys.0.data.addr().get(), values.0.data.addr().get());
    let size = size_of::<E>();
    if k.saturating_add(keys.1 * size) <= v || v.saturating_add(values.1 * size) <= k {
        return Ok(());
    }
    let what = "keys and values that interleave";
    let apart_by = k.abs_diff(v);
    if keys.0.strides != values.0.strides || !apart_by.is_multiple_of(size) {
        return refuse(what, "the same strides", "others");
    }
    let strides = keys.0.strides;
    let mut parts = [
        (strides[0], counts[0]),
        (strides[1], counts[1]),
        (strides[2], counts[2]),
        (apart_by / size, 2),
    ];
    apart(what, &mut parts, keys.0.width)
}

impl<E: Stored> Views<E> {
    pub(crate) fn new(compressor: &Compressor, layer: &Layer, batch: &Batched<'_>) -> Result<Self> {
        let counts = [batch.block_count(), compressor.kv_heads, batch.block_entries()];
        let (keys, key_span) = View::new("keys", &layer.keys, counts, compressor.head_dim)?;
        let (values, value_span) = View::new("values", &layer.values, counts, compressor.head_dim)?;
        disjoint((&keys, key_span), (&values, value_span), counts)?;
        let scales = match (&layer.scales, E::SCALED) {
            (Some([keys, values]), true) => {
                let (keys, key_span) = View::new("key_scales", keys, counts, 1)?;
                let (values, value_span) = View::new("value_scales", values, counts, 1)?;
                disjoint((&keys, key_span), (&values, value_span), counts)?;
                Some([keys, values])
            }
            (None, false) => None,
            (Some(_), false) => return refuse("scales", format_args!("none for {}", E::NAME), "some"),
            (None, true) => return refuse("scales", "key_scales and value_scales for i8", "none"),
        };
        let history = match (compressor.keeps_history(), &layer.history) {
            (false, _) => None,
            (true, Some(history)) => Some(View::new("history", history, counts, 1)?.0),
            (true, None) => return refuse("history", "a float for each entry and KV head", "none"),
        };
        Ok(Self {
            keys,
            values,
            scales,
            history,
            kv_heads: compressor.kv_heads,
            entries: batch.block_entries(),
            head_dim: compressor.head_dim,
        })
    }

    fn layout(&self) -> Layout {
        Layout {
            page_entries: self.entries,
            key_stride: self.keys.strides[2],
            value_stride: self.values.strides[2],
            head_dim: self.head_dim,
        }
    }

    /// # Safety
    /// As [`View::copy_block`], for all tensors.
    pub(crate) unsafe fn copy_block(&self, from: usize, to: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            self.keys.copy_block(from, to, self.kv_heads, self.entries);
            self.values.copy_block(from, to, self.kv_heads, self.entries);
            for floats in self.scales.iter().flatten().chain(&self.history) {
                floats.copy_block(from, to, self.kv_heads, self.entries);
            }
        }
    }
}

impl<E> Views<E> {
    /// Calls `take` with where the history of each of some entries of a KV head is, if there are any; `id` names the
    /// blocks of its sequence.
    ///
    /// # Safety
    /// The blocks are the tensor's, and `take` may do with their histories what it does.
    pub(crate) unsafe fn history(
        &self,
        kv_head: usize,
        entries: std::ops::Range<usize>,
        id: impl Fn(usize) -> i32,
        mut take: impl FnMut(*mut f32),
    ) {
        let Some(view) = &self.history else {
            return;
        };
        let mut first = entries.start;
        while first < entries.end {
            let (block, place) = (first / self.entries, first % self.entries);
            let count = (self.entries - place).min(entries.end - first);
            let data = view.at(id(block) as usize, kv_head).as_ptr();
            for place in place..place + count {
                take(data.wrapping_add(place * view.strides[2]));
            }
            first += count;
        }
    }
}

/// Addresses of one KV head's pages.
pub(crate) struct Pages<'w, E> {
    keys: &'w mut [NonNull<E>],
    values: &'w mut [NonNull<E>],
    scales: [&'w mut [NonNull<f32>]; 2],
}

impl<'w, E: Stored> Pages<'w, E> {
    /// Room for `blocks`.
    pub(crate) fn new(scratch: &mut Carver<'w>, blocks: usize) -> Result<Self> {
        let scale_blocks = if E::SCALED { blocks } else { 0 };
        Ok(Self {
            keys: scratch.filled(blocks, NonNull::dangling())?,
            values: scratch.filled(blocks, NonNull::dangling())?,
            scales: [
                scratch.filled(scale_blocks, NonNull::dangling())?,
                scratch.filled(scale_blocks, NonNull::dangling())?,
            ],
        })
    }

    /// Looks up a KV head in the blocks `ids`; returns how many they are.
    pub(crate) fn find(&mut self, views: &Views<E>, kv_head: usize, ids: impl Iterator<Item = i32>) -> usize {
        let mut count = 0;
        for (index, id) in ids.enumerate().take(self.keys.len()) {
            self.keys[index] = views.keys.at(id as usize, kv_head);
            self.values[index] = views.values.at(id as usize, kv_head);
            if let Some(scales) = &views.scales {
                for (pages, scales) in self.scales.iter_mut().zip(scales) {
                    pages[index] = scales.at(id as usize, kv_head);
                }
            }
            count = index + 1;
        }
        count
    }

    fn scales(&self, views: &Views<E>, count: usize) -> Option<Scales<'_>> {
        let [keys, values] = views.scales.as_ref()?;
        Some(Scales {
            keys: &self.scales[0][..count],
            values: &self.scales[1][..count],
            key_stride: keys.strides[2],
            value_stride: values.strides[2],
        })
    }

    /// The first `count` pages, with `len` valid entries.
    ///
    /// # Safety
    /// They are found and valid entries, readable and not written for as long as the view lives.
    pub(crate) unsafe fn read(&self, views: &Views<E>, count: usize, len: usize) -> Result<KvPages<'_, E>> {
        let (keys, values) = (&self.keys[..count], &self.values[..count]);
        // SAFETY: the caller's contract.
        Ok(unsafe { KvPages::with_scales(keys, values, self.scales(views, count), views.layout(), len)? })
    }

    /// [`read`](Self::read) for writing.
    ///
    /// # Safety
    /// As [`read`](Self::read); what an operation writes, nobody else uses.
    pub(crate) unsafe fn write(
        &self,
        views: &Views<E>,
        count: usize,
        len: usize,
    ) -> Result<KvPagesMut<'_, E>> {
        let (keys, values) = (&self.keys[..count], &self.values[..count]);
        // SAFETY: the caller's contract.
        Ok(unsafe { KvPagesMut::with_scales(keys, values, self.scales(views, count), views.layout(), len)? })
    }
}

/// A host's ring of queries, checked.
pub(crate) struct Queries<T> {
    data: *const T,
    strides: [usize; 3],
}

impl<T: Copy> Queries<T> {
    /// `counts`: rows, places, heads.
    pub(crate) fn new(
        data: *const c_void,
        strides: [i64; 3],
        counts: [usize; 3],
        head_dim: usize,
    ) -> Result<Self> {
        let (strides, _) = span::<T>("queries", data, strides, counts, head_dim)?;
        Ok(Self {
            data: data.cast(),
            strides,
        })
    }

    /// Appends the query of `head` in place `place` of `row` to `out`.
    ///
    /// # Safety
    /// All are within the counts; the ring is readable.
    pub(crate) unsafe fn read(
        &self,
        [row, place, head]: [usize; 3],
        out: &mut [f32],
        to_f32: impl Fn(T) -> f32,
    ) {
        let at = row * self.strides[0] + place * self.strides[1] + head * self.strides[2];
        for (d, slot) in out.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *slot = to_f32(unsafe { *self.data.add(at + d) });
        }
    }
}
