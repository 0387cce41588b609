use crate::element::Stored;
use crate::error::{Error, at_least, at_most, plus, times};
use crate::pages::{Column, KvPagesMut};
use crate::simd::Simd;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Moves entry `kept[i]` to index `first + i`, keys and values (and their scales), in place, and makes `first + kept.len()` the number of valid entries,
/// which is also returned. Entries before `first` stay; what is not kept is lost.
///
/// No destination lies behind its source, so nothing is overwritten before it has been moved. Entries that already lie right are not
/// touched; neighbours move together as far as pages allow.
///
/// # Errors
/// When `kept` does not ascend strictly, names an entry before its destination or beyond the valid ones, or `first` is beyond them.
/// All of it is checked before anything moves.
pub fn compact<E: Stored>(
    simd: Simd,
    pages: &mut KvPagesMut<'_, E>,
    first: usize,
    kept: &[u32],
) -> Result<usize, Error> {
    simd.check()?;
    check(first, kept, pages.len())?;
    let tables = pages.tables();
    runs(first, kept, |to, from, count| {
        // SAFETY: `check` has seen that sources and destinations are valid entries.
        unsafe {
            tables.keys.copy(to, from, count);
            tables.values.copy(to, from, count);
            if let Some(scales) = &tables.scales {
                scales.keys.copy(to, from, count);
                scales.values.copy(to, from, count);
            }
        }
    });
    let len = first + kept.len();
    pages.set_len(len);
    Ok(len)
}

/// Writes entry `from`, key and value (and their scales), over entry `to`. The number of valid entries stays.
///
/// # Errors
/// When one of them is not a valid entry.
pub fn move_entry<E: Stored>(
    simd: Simd,
    pages: &mut KvPagesMut<'_, E>,
    from: usize,
    to: usize,
) -> Result<(), Error> {
    simd.check()?;
    for (what, entry) in [("entry to move", from), ("entry to write over", to)] {
        at_most(what, pages.len().saturating_sub(1), entry)?;
    }
    at_least("valid entries", 1, pages.len())?;
    let tables = pages.tables();
    // SAFETY: both are valid entries, of which `to` may be written: it is what this operation is told to write.
    unsafe {
        tables.keys.copy(to, from, 1);
        tables.values.copy(to, from, 1);
        if let Some(scales) = &tables.scales {
            scales.keys.copy(to, from, 1);
            scales.values.copy(to, from, 1);
        }
    }
    Ok(())
}

/// Ascending, within the cache, and none before its destination.
fn check(first: usize, kept: &[u32], len: usize) -> Result<(), Error> {
    at_most("first entry to compact", len, first)?;
    let mut previous = None;
    for (index, &found) in kept.iter().enumerate() {
        if let Some(previous) = previous.filter(|&previous| previous >= found) {
            return Err(Error::NotAscending {
                index,
                previous,
                found,
            });
        }
        if (found as usize) < first + index {
            return Err(Error::Behind {
                index,
                destination: first + index,
                found,
            });
        }
        previous = Some(found);
    }
    if let Some(&last) = kept.last() {
        at_least("valid entries", 1, len)?;
        at_most("last kept entry", len - 1, last as usize)?;
    }
    Ok(())
}

/// Calls `copy(to, from, count)` for each run of neighbours that has to move, in ascending order.
fn runs(first: usize, kept: &[u32], mut copy: impl FnMut(usize, usize, usize)) {
    let mut start = 0;
    while start < kept.len() {
        let from = kept[start] as usize;
        let mut end = start + 1;
        while end < kept.len() && kept[end] as usize == from + (end - start) {
            end += 1;
        }
        if from != first + start {
            copy(first + start, from, end - start);
        }
        start = end;
    }
}

/// The positions that a cache's entries have in the text, paged like the entries: position of entry e at
/// `(e % page_entries) * stride` of page `e / page_entries`.
#[derive(Debug)]
pub struct PositionPagesMut<'a> {
    column: Column<'a, u32>,
    len: usize,
    lifetime: PhantomData<&'a mut [u32]>,
}

// SAFETY: like `&mut [u32]` of the positions.
unsafe impl Send for PositionPagesMut<'_> {}
// SAFETY: as above; a shared reference gives no access to them.
unsafe impl Sync for PositionPagesMut<'_> {}

impl<'a> PositionPagesMut<'a> {
    /// `pages[i]` is the address of page i, where positions lie one behind the other; the first `len` are valid.
    ///
    /// # Errors
    /// When `page_entries` is 0 or `len` is more than the pages hold.
    ///
    /// # Safety
    /// For `'a`, the first `len` positions are initialised, aligned and valid for reads and writes, no two of them overlap, and nobody
    /// else reads or writes them.
    pub unsafe fn new(pages: &'a [NonNull<u32>], page_entries: usize, len: usize) -> Result<Self, Error> {
        // SAFETY: the caller's contract.
        unsafe { PositionPagesMut::strided(pages, page_entries, 1, len) }
    }

    /// [`PositionPagesMut::new`] with `stride` numbers from one position of a page to the next. What lies between is never touched.
    ///
    /// # Errors
    /// As [`PositionPagesMut::new`]; when `stride` is 0.
    ///
    /// # Safety
    /// As [`PositionPagesMut::new`].
    pub unsafe fn strided(
        pages: &'a [NonNull<u32>],
        page_entries: usize,
        stride: usize,
        len: usize,
    ) -> Result<Self, Error> {
        let column = Column::numbers(pages, page_entries, "stride of the positions", stride)?;
        let capacity = times("capacity", pages.len(), page_entries)?;
        at_most("valid entries", capacity, len)?;
        Ok(PositionPagesMut {
            column,
            len,
            lifetime: PhantomData,
        })
    }

    /// One page, all of it valid.
    pub fn dense(positions: &'a mut [u32]) -> Self {
        let len = positions.len();
        let page = NonNull::from(positions).cast();
        PositionPagesMut {
            column: Column::one_page(page, len.max(1)),
            len,
            lifetime: PhantomData,
        }
    }

    /// Valid positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no valid position.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// [`compact`] for the entries' positions in the text.
///
/// # Errors
/// As [`compact`].
pub fn compact_positions(
    positions: &mut PositionPagesMut<'_>,
    first: usize,
    kept: &[u32],
) -> Result<usize, Error> {
    check(first, kept, positions.len)?;
    runs(first, kept, |to, from, count| {
        // SAFETY: `check` has seen that both are valid positions.
        unsafe { positions.column.copy(to, from, count) }
    });
    let len = plus("valid entries", first, kept.len())?;
    positions.len = len;
    Ok(len)
}
