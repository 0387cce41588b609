//! Nothing reads or writes beyond the entries: keys, values, queries and outputs end where an unmapped page begins.
#![cfg(unix)]

use crate::host::{ForFormat, Format, for_formats};
use crate::paths;
use crate::rng::{ForElement, Rng, for_elements};
use reasoning_rpc_cpu::*;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const PAGE: usize = 4096;

unsafe extern "C" {
    fn mmap(
        addr: *mut c_void,
        length: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(addr: *mut c_void, length: usize) -> c_int;
    fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int;
}

/// `count` elements directly before and directly behind a page that cannot be touched.
struct Fenced<T> {
    mapping: *mut u8,
    bytes: usize,
    first: *mut T,
    count: usize,
}

impl<T: Copy> Fenced<T> {
    /// At the end of readable memory, or at its start.
    fn new(count: usize, at_end: bool, fill: impl FnMut() -> T) -> Fenced<T> {
        let inside = (count * size_of::<T>()).next_multiple_of(PAGE).max(PAGE);
        let bytes = inside + 2 * PAGE;
        // PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS.
        let anonymous = if cfg!(target_os = "linux") { 0x22 } else { 0x1002 };
        // SAFETY: a new mapping, whose first and last page are then closed.
        let mapping = unsafe {
            let mapping = mmap(std::ptr::null_mut(), bytes, 3, anonymous, -1, 0).cast::<u8>();
            assert_ne!(mapping as isize, -1, "mmap");
            assert_eq!(mprotect(mapping.cast(), PAGE, 0), 0);
            assert_eq!(mprotect(mapping.add(PAGE + inside).cast(), PAGE, 0), 0);
            mapping
        };
        let at = if at_end {
            PAGE + inside - count * size_of::<T>()
        } else {
            PAGE
        };
        // SAFETY: within the mapping.
        let first = unsafe { mapping.add(at) }.cast::<T>();
        let mut fenced = Fenced {
            mapping,
            bytes,
            first,
            count,
        };
        fenced.slice().fill_with(fill);
        fenced
    }

    fn slice(&mut self) -> &mut [T] {
        // SAFETY: `count` elements of the mapping, zeroed by the system, aligned because pages and slices of them are.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.count) }
    }
}

impl<T> Drop for Fenced<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`.
        unsafe { munmap(self.mapping.cast(), self.bytes) };
    }
}

#[test]
fn nothing_touches_memory_beyond_the_entries() {
    struct Test(Rng);
    impl ForElement for Test {
        fn run<E: Element>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for at_end in [true, false] {
                    for head_dim in [8, 24, 64, 72, 128, 200] {
                        let (tokens, group, before) =
                            (rng.between(1, 9), rng.between(1, 7), rng.between(0, 140));
                        let len = before + tokens;
                        let mut keys = Fenced::new(len * head_dim, at_end, || E::from_f32(rng.normal()));
                        let mut values = Fenced::new(len * head_dim, at_end, || E::from_f32(rng.normal()));
                        let width = group * head_dim;
                        let mut queries = Fenced::new(tokens * width, at_end, || rng.normal());
                        let mut out = Fenced::new(tokens * width, at_end, || 0f32);
                        let mut scratch = Scratch::new();
                        let layout = Layout::contiguous(len, head_dim);
                        let pages = KvPages::dense(keys.slice(), values.slice(), layout, len).unwrap();
                        let heads = Heads::new(queries.slice(), tokens, group, head_dim, width).unwrap();
                        let mut to = HeadsMut::new(out.slice(), tokens, group, head_dim, width).unwrap();
                        attend(simd, &pages, before, heads, &mut to, 0.3, &mut scratch).unwrap();

                        let mut scores = Fenced::new(len, at_end, || 0f32);
                        let all = std::iter::once(0..len).collect::<Vec<_>>();
                        score(
                            simd,
                            &pages,
                            &all,
                            queries.slice(),
                            group,
                            0.3,
                            scores.slice(),
                            &mut scratch,
                        )
                        .unwrap();

                        let mut pages = KvPagesMut::dense(keys.slice(), values.slice(), layout, len).unwrap();
                        let mut row = Fenced::new(head_dim, at_end, || 1f32);
                        let mut cos = Fenced::new(head_dim / 2, at_end, || 1f32);
                        let mut sin = Fenced::new(head_dim / 2, at_end, || 1f32);
                        let mut rotated = Fenced::new(head_dim, at_end, || 0f32);
                        rotate(
                            simd,
                            row.slice(),
                            cos.slice(),
                            sin.slice(),
                            head_dim,
                            rotated.slice(),
                        )
                        .unwrap();
                        append(simd, &mut pages, len - 1, row.slice(), rotated.slice()).unwrap();
                        append(simd, &mut pages, 0, row.slice(), rotated.slice()).unwrap();
                        compact(simd, &mut pages, 0, &[len as u32 - 1]).unwrap();
                    }
                }
            }
        }
    }
    for_elements(&mut Test(Rng::new()));
}

/// What the compressor uses, in every format, with scales that end there too.
#[test]
fn no_format_is_touched_beyond_its_entries() {
    struct Test(Rng);
    impl ForFormat for Test {
        fn run<E: Format>(&mut self) {
            let rng = &mut self.0;
            for simd in paths() {
                for at_end in [true, false] {
                    for head_dim in [8, 24, 64, 72, 128, 200] {
                        let (len, group) = (rng.between(3, 140), rng.between(1, 7));
                        let mut keys = Fenced::new(len * head_dim, at_end, || E::random(rng));
                        let mut values = Fenced::new(len * head_dim, at_end, || E::random(rng));
                        let mut key_scales = Fenced::new(len, at_end, || 0.5f32);
                        let mut value_scales = Fenced::new(len, at_end, || 0.5f32);
                        let address = |part: &mut Fenced<f32>| [NonNull::from(part.slice()).cast()];
                        let (ks, vs) = (address(&mut key_scales), address(&mut value_scales));
                        let scales = Scales {
                            keys: &ks,
                            values: &vs,
                            key_stride: 1,
                            value_stride: 1,
                        };
                        let tables: ([NonNull<E>; 1], [NonNull<E>; 1]) = (
                            [NonNull::from(keys.slice()).cast()],
                            [NonNull::from(values.slice()).cast()],
                        );
                        let layout = Layout::contiguous(len, head_dim);
                        // SAFETY: the mappings hold `len` initialised entries and nobody else uses them.
                        let pages = unsafe {
                            let scales = E::SCALED.then_some(scales);
                            KvPagesMut::with_scales(&tables.0, &tables.1, scales, layout, len)
                        };
                        let mut pages = pages.unwrap();
                        let mut queries = Fenced::new(group * head_dim, at_end, || 0.25f32);
                        let mut scores = Fenced::new(len, at_end, || 0f32);
                        let bytes = score_scratch_bytes(group, len, head_dim);
                        let mut memory = Fenced::new(bytes, at_end, || 0xff_u8);
                        let memory = memory.slice();
                        // SAFETY: bytes as bytes that need not be initialised; only the library writes to them.
                        let memory = unsafe { &mut *(std::ptr::from_mut(memory) as *mut [MaybeUninit<u8>]) };
                        let all = 0..len;
                        score(
                            simd,
                            &pages.view(),
                            std::slice::from_ref(&all),
                            queries.slice(),
                            group,
                            0.3,
                            scores.slice(),
                            &mut ScratchOn::over(memory),
                        )
                        .unwrap();
                        let last = len as u32 - 1;
                        let merge = Merge {
                            from: 0,
                            into: last,
                            key_weight: 0.5,
                            value_weight: 0.5,
                        };
                        let mut row = Fenced::new(2 * head_dim, at_end, || 0f32);
                        merged_rows(&pages.view(), std::iter::once(merge), row.slice()).unwrap();
                        write_rows(&mut pages, std::iter::once(last), row.slice()).unwrap();
                        compact(simd, &mut pages, 0, &[1, last]).unwrap();
                        write_rows(&mut pages, std::iter::once(0), row.slice()).unwrap();
                    }
                }
            }
        }
    }
    for_formats(&mut Test(Rng::new()));
}
