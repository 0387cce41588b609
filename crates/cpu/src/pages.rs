use crate::element::Element;
use crate::error::{Error, at_least, at_most, exactly, plus, times};
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The largest head dimension that the kernels take.
pub const MAX_HEAD_DIM: usize = 256;

/// How entries lie in a page. Strides are in elements, from one entry of the page to the next; they need not be equal, and a paged,
/// token-major cache that keeps several heads side by side has larger ones than `head_dim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Entries in every page, at least 1.
    pub page_entries: usize,
    /// Elements from one key of a page to the next, at least `head_dim`.
    pub key_stride: usize,
    /// Elements from one value of a page to the next, at least `head_dim`.
    pub value_stride: usize,
    /// Elements of a key and of a value: a multiple of 8, at most [`MAX_HEAD_DIM`].
    pub head_dim: usize,
}

impl Layout {
    /// Entries directly behind one another.
    pub fn contiguous(page_entries: usize, head_dim: usize) -> Layout {
        Layout {
            page_entries,
            key_stride: head_dim,
            value_stride: head_dim,
            head_dim,
        }
    }

    fn check(self) -> Result<(), Error> {
        check_head_dim(self.head_dim)?;
        at_least("entries in a page", 1, self.page_entries)?;
        at_least("key stride", self.head_dim, self.key_stride)?;
        at_least("value stride", self.head_dim, self.value_stride)?;
        self.span(self.key_stride)?;
        self.span(self.value_stride)?;
        Ok(())
    }

    /// Elements from a page's first to its last, both included.
    fn span(self, stride: usize) -> Result<usize, Error> {
        let what = "elements of a page";
        let span = plus(what, times(what, self.page_entries - 1, stride)?, self.head_dim)?;
        at_most(what, isize::MAX as usize / 8, span)?;
        Ok(span)
    }

    /// Whether the entries of a page lie directly behind one another, keys and values.
    pub(crate) fn is_contiguous(self) -> bool {
        self.key_stride == self.head_dim && self.value_stride == self.head_dim
    }
}

/// A multiple of 8 from 8 to [`MAX_HEAD_DIM`].
pub(crate) fn check_head_dim(found: usize) -> Result<(), Error> {
    if found == 0 || found > MAX_HEAD_DIM || !found.is_multiple_of(8) {
        Err(Error::HeadDim { found })
    } else {
        Ok(())
    }
}

/// Addresses of the pages of one tensor.
#[derive(Clone, Copy, Debug)]
enum Table<'a, E> {
    One(NonNull<E>),
    Many(&'a [NonNull<E>]),
}

impl<E> Table<'_, E> {
    fn len(&self) -> usize {
        match self {
            Table::One(_) => 1,
            Table::Many(pages) => pages.len(),
        }
    }

    /// The page's address. `page < len`.
    #[inline(always)]
    fn page(&self, page: usize) -> *mut E {
        match self {
            Table::One(only) => only.as_ptr(),
            Table::Many(pages) => pages[page].as_ptr(),
        }
    }
}

/// The two tables with their layout: what both views are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a, E> {
    keys: Table<'a, E>,
    values: Table<'a, E>,
    layout: Layout,
    capacity: usize,
}

impl<'a, E: Element> Tables<'a, E> {
    fn paged(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        layout: Layout,
        len: usize,
    ) -> Result<Self, Error> {
        exactly("pages of values", keys.len(), values.len())?;
        Tables {
            keys: Table::Many(keys),
            values: Table::Many(values),
            layout,
            capacity: 0,
        }
        .checked(len)
    }

    fn dense(
        keys: (NonNull<E>, usize),
        values: (NonNull<E>, usize),
        layout: Layout,
        len: usize,
    ) -> Result<Self, Error> {
        let tables = Tables {
            keys: Table::One(keys.0),
            values: Table::One(values.0),
            layout,
            capacity: 0,
        }
        .checked(len)?;
        at_least(
            "elements of the keys' slice",
            layout.span(layout.key_stride)?,
            keys.1,
        )?;
        at_least(
            "elements of the values' slice",
            layout.span(layout.value_stride)?,
            values.1,
        )?;
        Ok(tables)
    }

    fn checked(self, len: usize) -> Result<Self, Error> {
        self.layout.check()?;
        let capacity = times("capacity", self.keys.len(), self.layout.page_entries)?;
        at_most("valid entries", capacity, len)?;
        Ok(Tables { capacity, ..self })
    }

    /// The key at `entry` and how many entries from there on share its page. `entry < capacity`.
    #[inline(always)]
    pub(crate) fn key(&self, entry: usize) -> (*mut E, usize) {
        let (page, at) = (entry / self.layout.page_entries, entry % self.layout.page_entries);
        (
            self.keys.page(page).wrapping_add(at * self.layout.key_stride),
            self.layout.page_entries - at,
        )
    }

    /// The value at `entry`, as [`Tables::key`].
    #[inline(always)]
    pub(crate) fn value(&self, entry: usize) -> (*mut E, usize) {
        let (page, at) = (entry / self.layout.page_entries, entry % self.layout.page_entries);
        (
            self.values.page(page).wrapping_add(at * self.layout.value_stride),
            self.layout.page_entries - at,
        )
    }

    /// Addresses of the keys `first..first + to.len()`, which lie within the capacity.
    #[inline(always)]
    pub(crate) fn keys_into(&self, first: usize, to: &mut [*const E]) {
        let mut done = 0;
        while done < to.len() {
            let (at, run) = self.key(first + done);
            let run = run.min(to.len() - done);
            for (e, slot) in to[done..done + run].iter_mut().enumerate() {
                *slot = at.wrapping_add(e * self.layout.key_stride);
            }
            done += run;
        }
    }

    /// Addresses of the values, as [`Tables::keys_into`].
    #[inline(always)]
    pub(crate) fn values_into(&self, first: usize, to: &mut [*const E]) {
        let mut done = 0;
        while done < to.len() {
            let (at, run) = self.value(first + done);
            let run = run.min(to.len() - done);
            for (e, slot) in to[done..done + run].iter_mut().enumerate() {
                *slot = at.wrapping_add(e * self.layout.value_stride);
            }
            done += run;
        }
    }
}

/// The cache of one KV head of one sequence in one layer, read-only: `len` entries of a key and a value, in pages. Entry e lies in page
/// `e / page_entries`, at `(e % page_entries) * stride` from that page's address.
#[derive(Clone, Copy, Debug)]
pub struct KvPages<'a, E> {
    tables: Tables<'a, E>,
    len: usize,
    lifetime: PhantomData<&'a [E]>,
}

// SAFETY: like `&[E]` of the entries; elements are plain numbers.
unsafe impl<E: Element> Send for KvPages<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for KvPages<'_, E> {}

impl<'a, E: Element> KvPages<'a, E> {
    /// `keys[i]` and `values[i]` are the addresses of page i; the first `len` entries are valid.
    ///
    /// # Errors
    /// When the tables differ in length, the layout is impossible or `len` is more than the pages hold.
    ///
    /// # Safety
    /// For `'a`, the `head_dim` elements of each of the first `len` keys and values are initialised, aligned for `E`, readable, and
    /// nobody writes them. Everything else (behind `len`, between entries) may be anything: it is never read.
    pub unsafe fn new(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        layout: Layout,
        len: usize,
    ) -> Result<KvPages<'a, E>, Error> {
        Ok(KvPages {
            tables: Tables::paged(keys, values, layout, len)?,
            len,
            lifetime: PhantomData,
        })
    }

    /// One page in slices; `layout.page_entries` is the capacity.
    ///
    /// # Errors
    /// When the layout is impossible, a slice is too short for it, or `len` is above the capacity.
    pub fn dense(
        keys: &'a [E],
        values: &'a [E],
        layout: Layout,
        len: usize,
    ) -> Result<KvPages<'a, E>, Error> {
        let (k, v) = (NonNull::from(keys).cast(), NonNull::from(values).cast());
        let tables = Tables::dense((k, keys.len()), (v, values.len()), layout, len)?;
        Ok(KvPages {
            tables,
            len,
            lifetime: PhantomData,
        })
    }

    /// Valid entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no valid entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries that the pages hold.
    pub fn capacity(&self) -> usize {
        self.tables.capacity
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.tables.layout
    }

    pub(crate) fn tables(&self) -> &Tables<'a, E> {
        &self.tables
    }
}

/// [`KvPages`] to write to: the first `len` entries are valid, the others room.
#[derive(Debug)]
pub struct KvPagesMut<'a, E> {
    tables: Tables<'a, E>,
    len: usize,
    lifetime: PhantomData<&'a mut [E]>,
}

// SAFETY: like `&mut [E]` of the entries; elements are plain numbers.
unsafe impl<E: Element> Send for KvPagesMut<'_, E> {}
// SAFETY: as above; a shared reference only reads.
unsafe impl<E: Element> Sync for KvPagesMut<'_, E> {}

impl<'a, E: Element> KvPagesMut<'a, E> {
    /// `keys[i]` and `values[i]` are the addresses of page i; the first `len` entries are valid.
    ///
    /// # Errors
    /// As [`KvPages::new`].
    ///
    /// # Safety
    /// For `'a`, the `head_dim` elements of every key and value that the pages hold are aligned for `E` and valid for writes, those of
    /// the first `len` entries are initialised and valid for reads, no two of them overlap (so no page occurs twice), and nobody else
    /// reads or writes what is written through the view: the entry that is appended, and the destinations of what is compacted. The
    /// other valid entries may be read elsewhere meanwhile. What lies between entries is never touched.
    pub unsafe fn new(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        layout: Layout,
        len: usize,
    ) -> Result<KvPagesMut<'a, E>, Error> {
        Ok(KvPagesMut {
            tables: Tables::paged(keys, values, layout, len)?,
            len,
            lifetime: PhantomData,
        })
    }

    /// One page in slices; `layout.page_entries` is the capacity.
    ///
    /// # Errors
    /// As [`KvPages::dense`].
    pub fn dense(
        keys: &'a mut [E],
        values: &'a mut [E],
        layout: Layout,
        len: usize,
    ) -> Result<KvPagesMut<'a, E>, Error> {
        let (key_elements, value_elements) = (keys.len(), values.len());
        let (k, v) = (NonNull::from(keys).cast(), NonNull::from(values).cast());
        let tables = Tables::dense((k, key_elements), (v, value_elements), layout, len)?;
        Ok(KvPagesMut {
            tables,
            len,
            lifetime: PhantomData,
        })
    }

    /// The valid entries, read-only.
    pub fn view(&self) -> KvPages<'_, E> {
        KvPages {
            tables: self.tables,
            len: self.len,
            lifetime: PhantomData,
        }
    }

    /// Valid entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no valid entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries that the pages hold.
    pub fn capacity(&self) -> usize {
        self.tables.capacity
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.tables.layout
    }

    pub(crate) fn tables(&self) -> &Tables<'a, E> {
        &self.tables
    }

    /// Entries up to `len` are now valid.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len;
    }
}
