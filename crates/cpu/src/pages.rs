use crate::element::{Element, Stored};
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
        span(self.page_entries, self.key_stride, self.head_dim)?;
        span(self.page_entries, self.value_stride, self.head_dim)?;
        Ok(())
    }
}

/// Elements from a page's first to its last, both included. `page_entries` is not 0.
fn span(page_entries: usize, stride: usize, width: usize) -> Result<usize, Error> {
    let what = "elements of a page";
    let span = plus(what, times(what, page_entries - 1, stride)?, width)?;
    at_most(what, isize::MAX as usize / 8, span)?;
    Ok(span)
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

/// One tensor's part of every entry: `width` numbers each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<'a, T> {
    pages: Table<'a, T>,
    page_entries: usize,
    stride: usize,
    width: usize,
}

impl<'a, T: Copy> Column<'a, T> {
    /// One number per entry: a scale or a position. Checks the stride and that a page lies within the address space.
    pub(crate) fn numbers(
        pages: &'a [NonNull<T>],
        page_entries: usize,
        what: &'static str,
        stride: usize,
    ) -> Result<Self, Error> {
        at_least("entries in a page", 1, page_entries)?;
        at_least(what, 1, stride)?;
        span(page_entries, stride, 1)?;
        Ok(Column {
            pages: Table::Many(pages),
            page_entries,
            stride,
            width: 1,
        })
    }

    /// One number per entry, one behind the other from `page` on. `entries` is not 0.
    pub(crate) fn one_page(page: NonNull<T>, entries: usize) -> Self {
        Column {
            pages: Table::One(page),
            page_entries: entries,
            stride: 1,
            width: 1,
        }
    }

    /// Where the part of `entry` lies and how many entries from there on share its page. `entry` is below the capacity.
    #[inline(always)]
    pub(crate) fn at(&self, entry: usize) -> (*mut T, usize) {
        let (page, at) = (entry / self.page_entries, entry % self.page_entries);
        (
            self.pages.page(page).wrapping_add(at * self.stride),
            self.page_entries - at,
        )
    }

    /// Addresses of the parts of `first..first + to.len()`, which lie within the capacity.
    #[inline(always)]
    pub(crate) fn addresses(&self, first: usize, to: &mut [*const T]) {
        let mut done = 0;
        while done < to.len() {
            let (at, run) = self.at(first + done);
            let run = run.min(to.len() - done);
            for (e, slot) in to[done..done + run].iter_mut().enumerate() {
                *slot = at.wrapping_add(e * self.stride);
            }
            done += run;
        }
    }

    /// Copies one number of each of `count` entries from `first` on to consecutive ones.
    ///
    /// # Safety
    /// The entries are readable, and there is room.
    #[inline(always)]
    pub(crate) unsafe fn gather(&self, first: usize, count: usize, to: *mut T) {
        let mut done = 0;
        while done < count {
            let (at, run) = self.at(first + done);
            let run = run.min(count - done);
            for e in 0..run {
                // SAFETY: the caller's contract; they share a page.
                unsafe { *to.add(done + e) = *at.add(e * self.stride) };
            }
            done += run;
        }
    }

    /// Copies the parts of `count` entries from `from` on to `to` and what follows, as if through a buffer where `to <= from`.
    ///
    /// # Safety
    /// All of these entries are within the capacity and valid for reads and writes, and nobody else accesses them.
    pub(crate) unsafe fn copy(&self, to: usize, from: usize, count: usize) {
        let mut done = 0;
        while done < count {
            let (target, room) = self.at(to + done);
            let (source, there) = self.at(from + done);
            let entries = room.min(there).min(count - done);
            // SAFETY: `entries` of them share a page on each side. In ascending order no source is overwritten before it was read.
            unsafe {
                if self.stride == self.width {
                    std::ptr::copy(source, target, entries * self.width);
                } else if self.width == 1 {
                    for e in 0..entries {
                        *target.add(e * self.stride) = *source.add(e * self.stride);
                    }
                } else {
                    for e in 0..entries {
                        let at = e * self.stride;
                        std::ptr::copy(source.add(at), target.add(at), self.width);
                    }
                }
            }
            done += entries;
        }
    }
}

/// The scales of a cache of `i8`: one `f32` per key and one per value, in pages of as many entries as theirs. The scale of entry e's key
/// is at `(e % page_entries) * key_stride` of page `e / page_entries`.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// Addresses of the pages of the keys' scales.
    pub keys: &'a [NonNull<f32>],
    /// Addresses of the pages of the values' scales.
    pub values: &'a [NonNull<f32>],
    /// Floats from one key's scale of a page to the next, at least 1.
    pub key_stride: usize,
    /// Floats from one value's scale of a page to the next, at least 1.
    pub value_stride: usize,
}

/// Where the scales lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScaleColumns<'a> {
    pub(crate) keys: Column<'a, f32>,
    pub(crate) values: Column<'a, f32>,
}

/// Where the entries lie: what both views are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a, E> {
    pub(crate) keys: Column<'a, E>,
    pub(crate) values: Column<'a, E>,
    /// There exactly if the format has scales.
    pub(crate) scales: Option<ScaleColumns<'a>>,
    layout: Layout,
    capacity: usize,
}

impl<'a, E: Stored> Tables<'a, E> {
    fn paged(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        scales: Option<Scales<'a>>,
        layout: Layout,
        len: usize,
    ) -> Result<Self, Error> {
        exactly("pages of values", keys.len(), values.len())?;
        let mut tables = Tables::new(Table::Many(keys), Table::Many(values), layout, len)?;
        exactly(
            "tables of scales",
            usize::from(E::SCALED),
            usize::from(scales.is_some()),
        )?;
        if let Some(scales) = scales {
            exactly("pages of the keys' scales", keys.len(), scales.keys.len())?;
            exactly("pages of the values' scales", keys.len(), scales.values.len())?;
            let entries = layout.page_entries;
            tables.scales = Some(ScaleColumns {
                keys: Column::numbers(
                    scales.keys,
                    entries,
                    "stride of the keys' scales",
                    scales.key_stride,
                )?,
                values: Column::numbers(
                    scales.values,
                    entries,
                    "stride of the values' scales",
                    scales.value_stride,
                )?,
            });
        }
        Ok(tables)
    }

    fn dense(
        keys: (NonNull<E>, usize),
        values: (NonNull<E>, usize),
        layout: Layout,
        len: usize,
    ) -> Result<Self, Error> {
        let tables = Tables::new(Table::One(keys.0), Table::One(values.0), layout, len)?;
        let span = |stride| span(layout.page_entries, stride, layout.head_dim);
        at_least("elements of the keys' slice", span(layout.key_stride)?, keys.1)?;
        at_least(
            "elements of the values' slice",
            span(layout.value_stride)?,
            values.1,
        )?;
        Ok(tables)
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Without scales.
    fn new(keys: Table<'a, E>, values: Table<'a, E>, layout: Layout, len: usize) -> Result<Self, Error> {
        layout.check()?;
        let capacity = times("capacity", keys.len(), layout.page_entries)?;
        at_most("valid entries", capacity, len)?;
        let column = |pages, stride| Column {
            pages,
            page_entries: layout.page_entries,
            stride,
            width: layout.head_dim,
        };
        Ok(Tables {
            keys: column(keys, layout.key_stride),
            values: column(values, layout.value_stride),
            scales: None,
            layout,
            capacity,
        })
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
unsafe impl<E: Stored> Send for KvPages<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Stored> Sync for KvPages<'_, E> {}

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
        // SAFETY: the caller's contract.
        unsafe { KvPages::with_scales(keys, values, None, layout, len) }
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
}

impl<'a, E: Stored> KvPages<'a, E> {
    /// [`KvPages::new`] for any format: scales come with `i8` and with nothing else.
    ///
    /// # Errors
    /// As [`KvPages::new`]; when scales are there or missing against the format, their tables differ in length from the others, or a
    /// stride of theirs is 0.
    ///
    /// # Safety
    /// As [`KvPages::new`], for the scales of the first `len` keys and values too.
    pub unsafe fn with_scales(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        scales: Option<Scales<'a>>,
        layout: Layout,
        len: usize,
    ) -> Result<KvPages<'a, E>, Error> {
        Ok(KvPages {
            tables: Tables::paged(keys, values, scales, layout, len)?,
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
unsafe impl<E: Stored> Send for KvPagesMut<'_, E> {}
// SAFETY: as above; a shared reference only reads.
unsafe impl<E: Stored> Sync for KvPagesMut<'_, E> {}

impl<'a, E: Element> KvPagesMut<'a, E> {
    /// `keys[i]` and `values[i]` are the addresses of page i; the first `len` entries are valid.
    ///
    /// # Errors
    /// As [`KvPages::new`].
    ///
    /// # Safety
    /// For `'a`, the `head_dim` elements of each of the first `len` keys and values are initialised, aligned for `E`, readable, no two of
    /// them overlap (so no page occurs twice), and nobody else writes them. Those that an operation is told to write are also writable,
    /// and nobody else reads them: [`append`](crate::append()) its one entry, [`compact`](crate::compact()) the entries from `first` up
    /// to the new length, [`write_rows`](crate::write_rows()) and [`move_entry`](crate::move_entry()) the entries they name. So pages shared with other caches may be among the
    /// rest. What lies between entries is never touched.
    pub unsafe fn new(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        layout: Layout,
        len: usize,
    ) -> Result<KvPagesMut<'a, E>, Error> {
        // SAFETY: the caller's contract.
        unsafe { KvPagesMut::with_scales(keys, values, None, layout, len) }
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
}

impl<'a, E: Stored> KvPagesMut<'a, E> {
    /// [`KvPagesMut::new`] for any format: scales come with `i8` and with nothing else.
    ///
    /// # Errors
    /// As [`KvPages::with_scales`].
    ///
    /// # Safety
    /// As [`KvPagesMut::new`], for the scales of these keys and values too.
    pub unsafe fn with_scales(
        keys: &'a [NonNull<E>],
        values: &'a [NonNull<E>],
        scales: Option<Scales<'a>>,
        layout: Layout,
        len: usize,
    ) -> Result<KvPagesMut<'a, E>, Error> {
        Ok(KvPagesMut {
            tables: Tables::paged(keys, values, scales, layout, len)?,
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
