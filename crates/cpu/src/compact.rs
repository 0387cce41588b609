use crate::element::Element;
use crate::error::{Error, at_least, at_most, plus, times};
use crate::pages::KvPagesMut;
use crate::simd::Simd;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Moves entry `kept[i]` to index `first + i`, keys and values, in place, and makes `first + kept.len()` the number of valid entries,
/// which is also returned. Entries before `first` stay; what is not kept is lost.
///
/// No destination lies behind its source, so nothing is overwritten before it has been moved. Entries that already lie right are not
/// touched; neighbours move together as far as pages allow.
///
/// # Errors
/// When `kept` does not ascend strictly, names an entry before its destination or beyond the valid ones, or `first` is beyond them.
/// All of it is checked before anything moves.
pub fn compact<E: Element>(
    simd: Simd,
    pages: &mut KvPagesMut<'_, E>,
    first: usize,
    kept: &[u32],
) -> Result<usize, Error> {
    simd.check()?;
    check(first, kept, pages.len())?;
    let layout = pages.layout();
    let tables = pages.tables();
    runs(first, kept, |to, from, count| {
        let mut done = 0;
        while done < count {
            let (key_to, room) = tables.key(to + done);
            let (key_from, there) = tables.key(from + done);
            let (value_to, _) = tables.value(to + done);
            let (value_from, _) = tables.value(from + done);
            let entries = room.min(there).min(count - done);
            // SAFETY: `check` has seen that source and destination are valid entries; `entries` of them share a page on each side.
            unsafe {
                if layout.is_contiguous() {
                    std::ptr::copy(key_from, key_to, entries * layout.head_dim);
                    std::ptr::copy(value_from, value_to, entries * layout.head_dim);
                } else {
                    for e in 0..entries {
                        let (k, v) = (e * layout.key_stride, e * layout.value_stride);
                        std::ptr::copy(key_from.add(k), key_to.add(k), layout.head_dim);
                        std::ptr::copy(value_from.add(v), value_to.add(v), layout.head_dim);
                    }
                }
            }
            done += entries;
        }
    });
    let len = first + kept.len();
    pages.set_len(len);
    Ok(len)
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

/// The positions that a cache's entries have in the text, paged like the entries: position of entry e at `e % page_entries` of page
/// `e / page_entries`.
#[derive(Debug)]
pub struct PositionPagesMut<'a> {
    pages: Pages<'a>,
    page_entries: usize,
    len: usize,
    lifetime: PhantomData<&'a mut [u32]>,
}

#[derive(Debug)]
enum Pages<'a> {
    One(NonNull<u32>),
    Many(&'a [NonNull<u32>]),
}

// SAFETY: like `&mut [u32]` of the positions.
unsafe impl Send for PositionPagesMut<'_> {}
// SAFETY: as above; a shared reference gives no access to them.
unsafe impl Sync for PositionPagesMut<'_> {}

impl<'a> PositionPagesMut<'a> {
    /// `pages[i]` is the address of page i; the first `len` positions are valid.
    ///
    /// # Errors
    /// When `page_entries` is 0 or `len` is more than the pages hold.
    ///
    /// # Safety
    /// For `'a`, the first `len` positions are initialised, aligned and valid for reads and writes, no two of them overlap, and nobody
    /// else reads or writes them.
    pub unsafe fn new(pages: &'a [NonNull<u32>], page_entries: usize, len: usize) -> Result<Self, Error> {
        at_least("entries in a page", 1, page_entries)?;
        at_most(
            "valid entries",
            times("capacity", pages.len(), page_entries)?,
            len,
        )?;
        Ok(PositionPagesMut {
            pages: Pages::Many(pages),
            page_entries,
            len,
            lifetime: PhantomData,
        })
    }

    /// One page, all of it valid.
    pub fn dense(positions: &'a mut [u32]) -> Self {
        let len = positions.len();
        let page = NonNull::from(positions).cast();
        PositionPagesMut {
            pages: Pages::One(page),
            page_entries: len.max(1),
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

    /// The address of a position and how many from there on share its page. `entry < len`.
    fn at(&self, entry: usize) -> (*mut u32, usize) {
        let (page, at) = (entry / self.page_entries, entry % self.page_entries);
        let page = match &self.pages {
            Pages::One(only) => *only,
            Pages::Many(pages) => pages[page],
        };
        (page.as_ptr().wrapping_add(at), self.page_entries - at)
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
        let mut done = 0;
        while done < count {
            let (target, room) = positions.at(to + done);
            let (source, there) = positions.at(from + done);
            let entries = room.min(there).min(count - done);
            // SAFETY: `check` has seen that both are valid positions; `entries` of them share a page on each side.
            unsafe { std::ptr::copy(source, target, entries) };
            done += entries;
        }
    });
    let len = plus("valid entries", first, kept.len())?;
    positions.len = len;
    Ok(len)
}
