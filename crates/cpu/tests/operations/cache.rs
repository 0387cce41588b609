use crate::rng::Rng;
use reasoning_rpc_cpu::{Element, KvPages, KvPagesMut, Layout};
use std::ptr::NonNull;

/// A cache of one KV head with some layout, in one allocation per tensor, its pages in random order and NaN wherever there is no entry.
pub struct Cache<E> {
    layout: Layout,
    len: usize,
    /// Element at which each page starts.
    key_pages: Vec<usize>,
    value_pages: Vec<usize>,
    keys: Vec<E>,
    values: Vec<E>,
    tables: (Vec<NonNull<E>>, Vec<NonNull<E>>),
}

impl<E: Element> Cache<E> {
    pub fn new(layout: Layout, pages: usize, rng: &mut Rng) -> Cache<E> {
        let mut place = |stride: usize| {
            // Pages at odd distances, so that nothing is aligned.
            let span = layout.page_entries * stride + rng.between(0, 3);
            let mut order: Vec<usize> = (0..pages).collect();
            for i in (1..pages).rev() {
                order.swap(i, rng.between(0, i));
            }
            let starts: Vec<usize> = order.into_iter().map(|page| page * span + 1).collect();
            (starts, vec![E::from_f32(f32::NAN); pages * span + 1])
        };
        let (key_pages, keys) = place(layout.key_stride);
        let (value_pages, values) = place(layout.value_stride);
        let mut cache = Cache {
            layout,
            len: 0,
            key_pages,
            value_pages,
            keys,
            values,
            tables: Default::default(),
        };
        let (keys, values) = (cache.keys.as_mut_ptr(), cache.values.as_mut_ptr());
        let at = |base: *mut E, starts: &[usize]| {
            // SAFETY: within the allocations, which never move again.
            let page = |&start: &usize| NonNull::new(unsafe { base.add(start) }).unwrap();
            starts.iter().map(page).collect()
        };
        cache.tables = (at(keys, &cache.key_pages), at(values, &cache.value_pages));
        cache
    }

    /// Room for `len` entries in a random layout.
    pub fn random(head_dim: usize, len: usize, rng: &mut Rng) -> Cache<E> {
        let page_entries = match rng.between(0, 3) {
            0 => 64,
            1 => rng.between(1, 9),
            2 => rng.pick(&[16, 32, 128]),
            _ => len.max(1) + rng.between(0, 5),
        };
        let layout = Layout {
            page_entries,
            key_stride: head_dim * rng.between(1, 2) + 8 * rng.between(0, 1),
            value_stride: head_dim * rng.between(1, 2),
            head_dim,
        };
        Cache::new(layout, len.div_ceil(page_entries) + rng.between(0, 1), rng)
    }

    pub fn write(&mut self, entry: usize, key: &[f32], value: &[f32]) {
        let (k, v) = self.at(entry);
        for d in 0..self.layout.head_dim {
            self.keys[k + d] = E::from_f32(key[d]);
            self.values[v + d] = E::from_f32(value[d]);
        }
        self.len = self.len.max(entry + 1);
    }

    /// Where an entry's key and value start.
    fn at(&self, entry: usize) -> (usize, usize) {
        let (page, at) = (entry / self.layout.page_entries, entry % self.layout.page_entries);
        (
            self.key_pages[page] + at * self.layout.key_stride,
            self.value_pages[page] + at * self.layout.value_stride,
        )
    }

    pub fn key(&self, entry: usize) -> &[E] {
        &self.keys[self.at(entry).0..][..self.layout.head_dim]
    }

    pub fn value(&self, entry: usize) -> &[E] {
        &self.values[self.at(entry).1..][..self.layout.head_dim]
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    pub fn pages(&self) -> KvPages<'_, E> {
        self.pages_of(self.len)
    }

    /// A view with fewer valid entries.
    pub fn pages_of(&self, len: usize) -> KvPages<'_, E> {
        // SAFETY: the pages lie in this cache's allocations, every element of which is initialised.
        unsafe { KvPages::new(&self.tables.0, &self.tables.1, self.layout, len) }.unwrap()
    }

    pub fn pages_mut(&mut self) -> KvPagesMut<'_, E> {
        // SAFETY: as above; the cache is borrowed exclusively, and its pages do not overlap.
        unsafe { KvPagesMut::new(&self.tables.0, &self.tables.1, self.layout, self.len) }.unwrap()
    }

    /// Every element outside of the first `len` entries is still NaN.
    pub fn untouched_elsewhere(&self, len: usize) -> bool {
        let mut key_used = vec![false; self.keys.len()];
        let mut value_used = vec![false; self.values.len()];
        for entry in 0..len {
            let (k, v) = self.at(entry);
            key_used[k..k + self.layout.head_dim].fill(true);
            value_used[v..v + self.layout.head_dim].fill(true);
        }
        let nan =
            |used: &[bool], all: &[E]| used.iter().zip(all).all(|(&used, e)| used || e.to_f32().is_nan());
        nan(&key_used, &self.keys) && nan(&value_used, &self.values)
    }
}

/// The bits, so that NaN equals itself and 0 differs from -0.
pub fn bits<E: Element>(numbers: &[E]) -> Vec<u32> {
    numbers.iter().map(|e| e.to_f32().to_bits()).collect()
}
