//! How near attention, scoring and compaction come to the speed at which this machine reads memory.
//!
//! `cargo run --release -p reasoning-rpc-cpu --example bandwidth [-- FILTER]`; `RRPC_SIMD` picks the instruction set, FILTER a part of
//! a line's name (`f16 D=64`). A cache of many layers, several times the last-level cache, in blocks of 64 entries (keys, then values,
//! then scales) that are handed out to the KV heads in turn. Some layers are read plainly, the next ones by attention, and so on in
//! turn, so that both see the same machine; with two threads, each has its part of both. Printed are medians: GB/s of keys, values and
//! scales, the same of the plain reading, and of attention over one small cache that stays in the second-level cache, where arithmetic
//! is the limit, also in turn; GFLOP/s are two per query head and element.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program that prints a table
#![allow(unsafe_code)] // raw pages and the plain reading loop

use half::{bf16, f16};
mod reading;

use reading::sum_lines;
use reasoning_rpc_cpu::*;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes that a line works on at least: several times the last-level cache.
const WORKING_SET: usize = 256 << 20;
/// Bytes between two looks at the clock, at least.
const CHUNK: usize = 8 << 20;
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
    let case = |head_dim, kv_heads, group| Case {
        head_dim,
        kv_heads,
        group,
    };
    let cases = [
        case(64, 3, 3),
        case(128, 2, 6),
        case(64, 2, 1),
        case(128, 2, 7),
        case(128, 2, 8),
    ];
    for case in &cases {
        for threads in [1, 2] {
            for len in [256, 4096, 8192, 16384, 32768] {
                decode::<f16>(simd, case, len, threads, &filter);
                decode::<bf16>(simd, case, len, threads, &filter);
                decode::<i8>(simd, case, len, threads, &filter);
                decode::<f32>(simd, case, len, threads, &filter);
            }
        }
    }
    for case in &cases[..2] {
        prefill::<f16>(simd, case, &filter);
        prefill::<i8>(simd, case, &filter);
        rpc::<f16>(simd, case, &filter);
        rpc::<i8>(simd, case, &filter);
    }
}

/// A number of the format, from one in -1..1.
trait Number: Stored {
    fn number(x: f32) -> Self;
}

impl Number for f32 {
    fn number(x: f32) -> f32 {
        x
    }
}

impl Number for f16 {
    fn number(x: f32) -> f16 {
        <f16 as Element>::from_f32(x)
    }
}

impl Number for bf16 {
    fn number(x: f32) -> bf16 {
        <bf16 as Element>::from_f32(x)
    }
}

impl Number for i8 {
    fn number(x: f32) -> i8 {
        (x * 127.0) as i8
    }
}

/// Addresses of a head's pages: keys, values, and their scales.
struct Head<E> {
    keys: Vec<NonNull<E>>,
    values: Vec<NonNull<E>>,
    scales: [Vec<NonNull<f32>>; 2],
}

/// Caches of `layers * kv_heads` heads in one allocation.
struct Pool<E> {
    memory: Vec<u64>,
    heads: Vec<Head<E>>,
    layout: Layout,
    len: usize,
}

// SAFETY: the addresses are those of `memory`, which threads read.
unsafe impl<E> Sync for Pool<E> {}

/// Bytes of an entry's scales.
fn scale_bytes<E: Stored>() -> usize {
    if E::SCALED { 2 * size_of::<f32>() } else { 0 }
}

impl<E: Number> Pool<E> {
    fn new(case: &Case, len: usize, working_set: usize) -> Pool<E> {
        let layout = Layout::contiguous(BLOCK, case.head_dim);
        let head_blocks = len.div_ceil(BLOCK);
        let plane = BLOCK * case.head_dim * E::SIZE;
        let block = 2 * plane + BLOCK * scale_bytes::<E>();
        let layers = working_set.div_ceil(case.kv_heads * head_blocks * block);
        let mut noise = Noise(1);
        let some: Vec<E> = (0..4099).map(|_| E::number(noise.next())).collect();
        let words = layers * case.kv_heads * head_blocks * block / 8;
        let mut memory: Vec<u64> = Vec::with_capacity(words);
        huge_pages(&mut memory);
        memory.resize(words, 0);
        let base: NonNull<u8> = NonNull::new(memory.as_mut_ptr()).unwrap().cast();
        let heads = (0..layers * case.kv_heads)
            .map(|h| {
                let (layer, head) = (h / case.kv_heads, h % case.kv_heads);
                let at = |b: usize, offset: usize| {
                    let block_index = (layer * head_blocks + b) * case.kv_heads + head;
                    // SAFETY: within the allocation.
                    unsafe { base.add(block_index * block + offset) }
                };
                let pages = |offset| (0..head_blocks).map(|b| at(b, offset).cast()).collect();
                for b in 0..head_blocks {
                    for i in 0..2 * plane / E::SIZE {
                        // SAFETY: within the block.
                        unsafe { at(b, 0).cast::<E>().add(i).write(some[(b * 31 + i) % some.len()]) };
                    }
                    for i in 0..BLOCK * scale_bytes::<E>() / 4 {
                        // SAFETY: within the block.
                        unsafe { at(b, 2 * plane).cast::<f32>().add(i).write(1.0 / 127.0) };
                    }
                }
                let scale_pages = |offset| (0..head_blocks).map(|b| at(b, offset).cast()).collect();
                Head {
                    keys: pages(0),
                    values: pages(plane),
                    scales: [
                        scale_pages(2 * plane),
                        scale_pages(2 * plane + BLOCK * scale_bytes::<E>() / 2),
                    ],
                }
            })
            .collect();
        Pool {
            memory,
            heads,
            layout,
            len,
        }
    }

    fn scales(&self, head: usize) -> Option<Scales<'_>> {
        let [keys, values] = &self.heads[head].scales;
        E::SCALED.then_some(Scales {
            keys,
            values,
            key_stride: 1,
            value_stride: 1,
        })
    }

    fn pages(&self, head: usize) -> KvPages<'_, E> {
        let Head { keys, values, .. } = &self.heads[head];
        // SAFETY: the blocks lie in `memory`, which this borrows.
        unsafe { KvPages::with_scales(keys, values, self.scales(head), self.layout, self.len) }.unwrap()
    }

    /// Part of the memory.
    fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        // SAFETY: plain numbers.
        let all = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<u8>(), size_of_val(&self.memory[..]))
        };
        &all[range]
    }

    /// Bytes of the entries of one head.
    fn head_bytes(&self) -> usize {
        self.len * (2 * self.layout.head_dim * E::SIZE + scale_bytes::<E>())
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

/// Queries and results of one thread.
struct Worker {
    queries: Vec<f32>,
    out: Vec<f32>,
    scratch: Scratch,
}

impl Worker {
    fn new(case: &Case) -> Worker {
        let queries = vec_of(case.group * case.head_dim);
        Worker {
            out: vec![0.0; queries.len()],
            queries,
            scratch: Scratch::new(),
        }
    }

    fn attend<E: Number>(&mut self, simd: Simd, case: &Case, pool: &Pool<E>, head: usize) {
        let width = self.queries.len();
        let heads = Heads::new(&self.queries, 1, case.group, case.head_dim, width).unwrap();
        let mut to = HeadsMut::new(&mut self.out, 1, case.group, case.head_dim, width).unwrap();
        let (pages, scale) = (pool.pages(head), 1.0 / (case.head_dim as f32).sqrt());
        attend(
            simd,
            &pages,
            pool.len - 1,
            heads,
            &mut to,
            scale,
            &mut self.scratch,
        )
        .unwrap();
        black_box(&self.out);
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn decode<E: Number>(simd: Simd, case: &Case, len: usize, threads: usize, filter: &str) {
    let name = format!(
        "decode {} D={} {}x{} len {len} threads {threads}",
        E::NAME,
        case.head_dim,
        case.kv_heads,
        case.group
    );
    if !name.contains(filter) {
        return;
    }
    let small_len = (SMALL / (2 * case.head_dim * E::SIZE)).min(len);
    let small = Pool::<E>::new(&Case { kv_heads: 1, ..*case }, small_len, 1);
    let small = &small;

    let pool = &Pool::<E>::new(case, len, WORKING_SET);
    // Heads of a chunk: whole layers, because a layer's blocks alternate between its heads, and of each thread as many.
    let layers = CHUNK.div_ceil(case.kv_heads * pool.head_bytes());
    let heads = (layers * case.kv_heads).next_multiple_of(threads * case.kv_heads);
    let chunks = pool.heads.len() / heads;
    let bytes = heads * pool.head_bytes();
    let barrier = &Barrier::new(threads);
    // Each thread does its part of every chunk; all begin together, and a chunk takes as long as the slowest.
    let (times, cached): (Vec<Vec<f64>>, Vec<Vec<f64>>) = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let mut worker = Worker::new(case);
            let (mut times, mut cached) = (Vec::new(), Vec::new());
            for chunk in (0..REPETITIONS * chunks).map(|i| i % (chunks / 2 * 2)) {
                barrier.wait();
                times.push(if chunk % 2 == 0 {
                    let part = bytes / threads;
                    let first = chunk * bytes + thread * part;
                    let memory = pool.bytes(first..first + part);
                    seconds(|| {
                        black_box(sum_lines(memory));
                    })
                } else {
                    let part = heads / threads;
                    let first = chunk * heads + thread * part;
                    seconds(|| (first..first + part).for_each(|head| worker.attend(simd, case, pool, head)))
                });
                if chunk % 2 == 1 {
                    barrier.wait();
                    let rounds = bytes / threads / small.head_bytes();
                    let time = seconds(|| (0..rounds).for_each(|_| worker.attend(simd, case, small, 0)));
                    cached.push(time / rounds as f64);
                }
            }
            (times, cached)
        };
        let workers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let (mut reads, mut attends) = (Vec::new(), Vec::new());
    for (index, chunk) in (0..REPETITIONS * chunks)
        .map(|i| i % (chunks / 2 * 2))
        .enumerate()
    {
        let slowest = times.iter().map(|times| times[index]).fold(0.0, f64::max);
        if chunk % 2 == 0 { &mut reads } else { &mut attends }.push(slowest);
    }
    let gigabytes = bytes as f64 / 1e9;
    let (read, attend) = (median(reads), median(attends));
    let slowest = |index: usize| cached.iter().map(|times| times[index]).fold(0.0, f64::max);
    let cached = median((0..cached[0].len()).map(slowest).collect()) / threads as f64;
    let arithmetic = small.head_bytes() as f64 / 1e9 / cached;
    println!(
        "{name:46} {:5.1} GB/s; reading alone {:5.1}: {:3.0}%; arithmetic alone {arithmetic:5.1}: {:3.0}%, {:5.1} GFLOP/s; {:7.1} us per head",
        gigabytes / attend,
        gigabytes / read,
        100.0 * read / attend,
        100.0 * gigabytes / attend / arithmetic,
        gigabytes / attend * flops_per_byte::<E>(case),
        1e6 * attend / heads as f64 * threads as f64,
    );
}

/// Two operations for each query head and element.
fn flops_per_byte<E: Number>(case: &Case) -> f64 {
    2.0 * case.group as f64 / (E::SIZE as f64 + scale_bytes::<E>() as f64 / (2 * case.head_dim) as f64)
}

fn prefill<E: Number>(simd: Simd, case: &Case, filter: &str) {
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
fn rpc<E: Number>(simd: Simd, case: &Case, filter: &str) {
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
            for (index, Head { keys, values, .. }) in pool.heads[..case.kv_heads].iter().enumerate() {
                let scales = pool.scales(index);
                // SAFETY: nothing else uses the pool's memory meanwhile.
                let pages = unsafe { KvPagesMut::with_scales(keys, values, scales, pool.layout, len) };
                let mut pages = pages.unwrap();
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
