//! How near attention, scoring and compaction come to the speed at which this machine reads memory.
//!
//! `cargo run --release -p reasoning-rpc-cpu --example bandwidth [-- FILTER]`; `RRPC_SIMD` picks the instruction set, FILTER a part of
//! a line's name (`f16 D=64`). One thread. A cache of many layers, several times the last-level cache, in blocks of 64 entries (keys,
//! then values) that are handed out to the KV heads in turn. Some layers are read plainly, the next ones by attention, and so on in
//! turn, so that both see the same machine. Printed are medians: GB/s of keys and values, the share of the plain reading, GFLOP/s
//! (two per query head and element read), and what attention reaches on one small cache that stays in the second-level
//! cache, where arithmetic is the limit.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program that prints a table
#![allow(unsafe_code)] // raw pages and the plain reading loop

use half::f16;
use reasoning_rpc_cpu::*;
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Instant;

/// Bytes that a line works on at least: several times the last-level cache.
const WORKING_SET: usize = 256 << 20;
/// Bytes between two looks at the clock, at least.
const CHUNK: usize = 2 << 20;
/// Bytes of a cache for the limit of the arithmetic.
const SMALL: usize = 128 << 10;
const BLOCK: usize = 64;
const REPETITIONS: usize = 15;

#[derive(Clone, Copy)]
struct Case {
    head_dim: usize,
    kv_heads: usize,
    group: usize,
}

fn main() {
    let simd = Simd::from_env().unwrap();
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!("instruction set {}", simd.name());
    let cases = [
        Case {
            head_dim: 64,
            kv_heads: 3,
            group: 3,
        },
        Case {
            head_dim: 128,
            kv_heads: 2,
            group: 6,
        },
        Case {
            head_dim: 64,
            kv_heads: 2,
            group: 1,
        },
        Case {
            head_dim: 128,
            kv_heads: 2,
            group: 8,
        },
    ];
    for case in &cases {
        for len in [256, 4096, 16384, 32768] {
            decode::<f16>(simd, case, len, &filter);
            decode::<f32>(simd, case, len, &filter);
        }
    }
    for case in &cases[..2] {
        prefill::<f16>(simd, case, &filter);
        rpc::<f16>(simd, case, &filter);
    }
}

/// Addresses of a head's pages: keys, values.
type Head<E> = (Vec<NonNull<E>>, Vec<NonNull<E>>);

/// Caches of `layers * kv_heads` heads in one allocation.
struct Pool<E> {
    memory: Vec<E>,
    heads: Vec<Head<E>>,
    layout: Layout,
    len: usize,
}

impl<E: Element> Pool<E> {
    fn new(case: &Case, len: usize, working_set: usize) -> Pool<E> {
        let layout = Layout::contiguous(BLOCK, case.head_dim);
        let head_blocks = len.div_ceil(BLOCK);
        let block = 2 * BLOCK * case.head_dim;
        let layers = working_set.div_ceil(case.kv_heads * head_blocks * block * E::SIZE);
        let mut noise = Noise(1);
        let some: Vec<E> = (0..4099).map(|_| E::from_f32(noise.next())).collect();
        let elements = layers * case.kv_heads * head_blocks * block;
        let mut memory: Vec<E> = Vec::with_capacity(elements);
        huge_pages(&mut memory);
        memory.extend((0..elements).map(|i| some[i % some.len()]));
        let base = NonNull::new(memory.as_mut_ptr()).unwrap();
        let heads = (0..layers * case.kv_heads)
            .map(|h| {
                let (layer, head) = (h / case.kv_heads, h % case.kv_heads);
                let at = |b: usize| ((layer * head_blocks + b) * case.kv_heads + head) * block;
                // SAFETY: within the allocation.
                let keys = (0..head_blocks).map(|b| unsafe { base.add(at(b)) }).collect();
                // SAFETY: as above.
                let values = (0..head_blocks)
                    .map(|b| unsafe { base.add(at(b) + block / 2) })
                    .collect();
                (keys, values)
            })
            .collect();
        Pool {
            memory,
            heads,
            layout,
            len,
        }
    }

    fn pages(&self, head: usize) -> KvPages<'_, E> {
        let (keys, values) = &self.heads[head];
        // SAFETY: the blocks lie in `memory`, which this borrows.
        unsafe { KvPages::new(keys, values, self.layout, self.len) }.unwrap()
    }

    /// Part of the memory.
    fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        // SAFETY: elements are plain numbers.
        let all = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<u8>(), size_of_val(&self.memory[..]))
        };
        &all[range]
    }

    /// Bytes of the entries of one head.
    fn head_bytes(&self) -> usize {
        2 * self.len * self.layout.head_dim * E::SIZE
    }
}

/// Asks for huge pages, as the engine's pool does.
fn huge_pages<E>(memory: &mut Vec<E>) {
    let start = memory.as_mut_ptr().addr().next_multiple_of(4096);
    let end = (memory.as_mut_ptr().addr() + memory.capacity() * size_of::<E>()) / 4096 * 4096;
    // SAFETY: whole pages of this allocation; the advice does not change what they hold.
    unsafe {
        libc::madvise(
            start as *mut libc::c_void,
            end.saturating_sub(start),
            libc::MADV_HUGEPAGE,
        )
    };
}

/// Reads every cache line, fetching ahead: as fast as one thread of this machine reads.
fn sum_lines(memory: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in memory.chunks_exact(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::*;
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(8192).cast());
        }
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum = sum.wrapping_add(u64::from_le_bytes(word.try_into().unwrap()));
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

fn decode<E: Element>(simd: Simd, case: &Case, len: usize, filter: &str) {
    let name = format!(
        "decode {} D={} {}x{} len {len}",
        E::NAME,
        case.head_dim,
        case.kv_heads,
        case.group
    );
    if !name.contains(filter) {
        return;
    }
    let queries = vec_of(case.group * case.head_dim);
    let mut out = vec![0.0; queries.len()];
    let mut scratch = Scratch::new();
    let scale = 1.0 / (case.head_dim as f32).sqrt();
    let width = queries.len();
    let mut run = |pool: &Pool<E>, head: usize| {
        let heads = Heads::new(&queries, 1, case.group, case.head_dim, width).unwrap();
        let mut to = HeadsMut::new(&mut out, 1, case.group, case.head_dim, width).unwrap();
        attend(
            simd,
            &pool.pages(head),
            pool.len - 1,
            heads,
            &mut to,
            scale,
            &mut scratch,
        )
        .unwrap();
        black_box(&out);
    };
    let seconds = |mut work: Box<dyn FnMut() + '_>| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };

    let small_len = (SMALL / (2 * case.head_dim * E::SIZE)).min(len);
    let small = Pool::<E>::new(&Case { kv_heads: 1, ..*case }, small_len, 1);
    let cached = (0..2000)
        .map(|_| seconds(Box::new(|| run(&small, 0))))
        .fold(f64::MAX, f64::min);

    let pool = Pool::<E>::new(case, len, WORKING_SET);
    // Heads of a chunk: whole layers, because a layer's blocks alternate between its heads.
    let layers = CHUNK.div_ceil(case.kv_heads * pool.head_bytes());
    let heads = layers * case.kv_heads;
    let chunks = pool.heads.len() / heads;
    let bytes = heads * pool.head_bytes();
    let (mut reads, mut attends) = (Vec::new(), Vec::new());
    for chunk in (0..REPETITIONS * chunks).map(|i| i % (chunks / 2 * 2)) {
        if chunk % 2 == 0 {
            let memory = pool.bytes(chunk * bytes..(chunk + 1) * bytes);
            reads.push(seconds(Box::new(|| {
                black_box(sum_lines(memory));
            })));
        } else {
            attends.push(seconds(Box::new(|| {
                (chunk * heads..(chunk + 1) * heads).for_each(|head| run(&pool, head))
            })));
        }
    }
    let gigabytes = bytes as f64 / 1e9;
    let (read, attend) = (median(reads), median(attends));
    println!(
        "{name:36} {:5.1} GB/s of {:5.1}: {:3.0}%, {:5.1} GFLOP/s, {:7.1} us per head; in cache {:5.1} GB/s, {:5.1} GFLOP/s",
        gigabytes / attend,
        gigabytes / read,
        100.0 * read / attend,
        gigabytes / attend * flops_per_byte::<E>(case),
        1e6 * attend / heads as f64,
        small.head_bytes() as f64 / 1e9 / cached,
        small.head_bytes() as f64 / 1e9 / cached * flops_per_byte::<E>(case),
    );
}

/// Two operations for each query head and element.
fn flops_per_byte<E: Element>(case: &Case) -> f64 {
    2.0 * case.group as f64 / E::SIZE as f64
}

fn prefill<E: Element>(simd: Simd, case: &Case, filter: &str) {
    for (tokens, before) in [(512, 0), (512, 4096)] {
        let name = format!(
            "prefill {} D={} {}x{} {tokens} after {before}",
            E::NAME,
            case.head_dim,
            case.kv_heads,
            case.group
        );
        if !name.contains(filter) {
            continue;
        }
        let pool = Pool::<E>::new(case, before + tokens, 1);
        let width = case.kv_heads * case.group * case.head_dim;
        let queries = vec_of(tokens * width);
        let mut out = vec![0.0; queries.len()];
        let mut scratch = Scratch::new();
        let scale = 1.0 / (case.head_dim as f32).sqrt();
        let mut times = Vec::new();
        for _ in 0..REPETITIONS {
            let start = Instant::now();
            for head in 0..case.kv_heads {
                let at = head * case.group * case.head_dim;
                let heads = Heads::new(&queries[at..], tokens, case.group, case.head_dim, width).unwrap();
                let mut to = HeadsMut::new(&mut out[at..], tokens, case.group, case.head_dim, width).unwrap();
                for first in (0..tokens).step_by(ATTEND_TOKEN_TILE) {
                    let range = first..(first + ATTEND_TOKEN_TILE).min(tokens);
                    let mut part = to.tokens_in(range.clone()).unwrap();
                    let heads = heads.tokens_in(range).unwrap();
                    attend(
                        simd,
                        &pool.pages(head),
                        before + first,
                        heads,
                        &mut part,
                        scale,
                        &mut scratch,
                    )
                    .unwrap();
                }
            }
            times.push(start.elapsed().as_secs_f64());
            black_box(&out);
        }
        let pairs = (case.kv_heads * case.group * tokens) as f64 * (before as f64 + tokens as f64 / 2.0);
        let time = median(times);
        println!(
            "{name:40} {:6.2} ms, {:5.1} GFLOP/s",
            1e3 * time,
            pairs * 4.0 * case.head_dim as f64 / time / 1e9
        );
    }
}

/// One compression of one layer at R = 32, P = 4096 and a quarter kept: 4096 candidates the first time, 7168 the fourth.
fn rpc<E: Element>(simd: Simd, case: &Case, filter: &str) {
    for candidates in [1024, 4096, 7168] {
        let name = format!(
            "compress {} D={} {}x{} C={candidates}",
            E::NAME,
            case.head_dim,
            case.kv_heads,
            case.group
        );
        if !name.contains(filter) {
            continue;
        }
        let (prompt, window) = (100, 32);
        let len = prompt + candidates + window;
        let mut noise = Noise(7);
        let queries = vec_of(window * case.group * case.head_dim);
        let mut out = vec![0.0; candidates];
        let mut scratch = Scratch::new();
        let scale = 1.0 / (case.head_dim as f32).sqrt();
        let kept: Vec<u32> = (0..candidates)
            .filter(|_| noise.next() > 0.5)
            .chain(candidates..candidates + window)
            .map(|e| (prompt + e) as u32)
            .collect();
        let (mut scores, mut moves) = (Vec::new(), Vec::new());
        let pool = Pool::<E>::new(case, len, 1);
        for _ in 0..REPETITIONS {
            let start = Instant::now();
            for head in 0..case.kv_heads {
                let range = prompt..prompt + candidates;
                score(
                    simd,
                    &pool.pages(head),
                    std::slice::from_ref(&range),
                    &queries,
                    case.group,
                    scale,
                    &mut out,
                    &mut scratch,
                )
                .unwrap();
            }
            scores.push(start.elapsed().as_secs_f64());
            black_box(&out);
            let start = Instant::now();
            for (keys, values) in &pool.heads[..case.kv_heads] {
                // SAFETY: nothing else uses the pool's memory meanwhile.
                let mut pages = unsafe { KvPagesMut::new(keys, values, pool.layout, len) }.unwrap();
                compact(simd, &mut pages, prompt, &kept).unwrap();
            }
            moves.push(start.elapsed().as_secs_f64());
        }
        println!(
            "{name:40} score {:7.3} ms, compact {:7.3} ms per layer",
            1e3 * median(scores),
            1e3 * median(moves)
        );
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn vec_of(count: usize) -> Vec<f32> {
    let mut noise = Noise(3);
    (0..count).map(|_| noise.next()).collect()
}

/// Numbers in -1..1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
