//! How near the quantised product comes to the speed at which this machine reads memory, and to that of its arithmetic.
//!
//! `cargo run --release -p reasoning-rpc-cpu --example product [-- FILTER]`; `RRPC_SIMD` picks the instruction set, FILTER a part of a
//! line's name (`q4_0`, `down`). Shapes are Qwen2-1.5B's. Copies of a matrix fill several times the last-level cache; some are read
//! plainly, the next ones multiplied with 1 row, the next with 2, 4 and 8, and so on in turn, so that all see the same machine. Printed are
//! medians: GB/s of weights, and the share of the plain reading; the time of 8 rows as a multiple of that of 1; and GFLOP/s at 256 rows (two
//! per weight and row), the activations' rounding included.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program that prints a table
#![allow(unsafe_code)] // parts of a result for several threads; prefetch

mod reading;

use reading::sum_lines;
use reasoning_rpc_cpu::*;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes of all copies of a matrix, at least.
const WORKING_SET: usize = 320 << 20;
/// Bytes that a thread works on between two looks at the clock, at least.
const CHUNK: usize = 3 << 20;
const ROUNDS: usize = 12;
const ROWS: [usize; 4] = [1, 2, 4, 8];

fn main() {
    let simd = Simd::from_env().unwrap();
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!("instruction set {}", simd.name());
    let shapes = [
        ("qkv", 2048, 1536),
        ("gate-up", 17920, 1536),
        ("down", 1536, 8960),
        ("head", 151_936, 1536),
    ];
    for threads in [1, 2] {
        for format in BlockFormat::ALL {
            for (shape, rows, width) in shapes {
                let name = format!("{threads} thread {format:?} {shape}").to_lowercase();
                if name.contains(&filter) {
                    decode(simd, &name, threads, format, rows, width);
                }
            }
        }
    }
    for threads in [1, 2] {
        for format in BlockFormat::ALL {
            for (shape, rows, width) in &shapes[..3] {
                let name = format!("{threads} thread {format:?} {shape} prefill").to_lowercase();
                if name.contains(&filter) {
                    prefill(simd, &name, threads, format, *rows, *width);
                }
            }
        }
    }
}

fn decode(simd: Simd, name: &str, threads: usize, format: BlockFormat, rows: usize, width: usize) {
    let bytes = QuantizedMatrix::bytes_of(format, rows, width).unwrap();
    let copies = WORKING_SET.div_ceil(bytes).max(1);
    let memory = weights(format, rows, width, copies);
    let matrices: Vec<_> = memory
        .chunks_exact(bytes)
        .map(|bytes| QuantizedMatrix::new(format, rows, width, bytes).unwrap())
        .collect();
    let panel_bytes = matrices[0].panel_bytes();
    let panels = matrices[0].panels();
    // Pieces of work: a matrix and a range of its panels for each thread.
    let piece_panels = (threads * CHUNK.div_ceil(panel_bytes)).min(panels);
    let pieces: Vec<(usize, usize)> = (0..copies)
        .flat_map(|copy| (0..panels / piece_panels).map(move |piece| (copy, piece * piece_panels)))
        .collect();
    let part = |piece: usize, thread: usize| {
        let (copy, first) = pieces[piece];
        let of = |thread: usize| first + piece_panels * thread / threads;
        (copy, of(thread)..of(thread + 1))
    };
    let inputs: Vec<Vec<QuantizedTile>> = ROWS.iter().map(|&rows| activations(simd, rows, width)).collect();
    let mut outs: Vec<Vec<f32>> = ROWS.iter().map(|&count| vec![0.0; count * rows]).collect();
    let targets: Vec<Target> = outs.iter_mut().map(|out| Target(out.as_mut_ptr())).collect();
    let kinds = 1 + ROWS.len();
    let work = |piece: usize, kind: usize, thread: usize| {
        let (copy, range) = part(piece, thread);
        if kind == 0 {
            black_box(sum_lines(
                &memory[copy * bytes..][range.start * panel_bytes..range.end * panel_bytes],
            ));
            return;
        }
        // SAFETY: threads write different panels' columns.
        let mut out = unsafe { RowsMut::from_raw(targets[kind - 1].get(), ROWS[kind - 1], rows) };
        let linear = Linear {
            matrix: matrices[copy],
            bias: None,
        };
        multiply(simd, &inputs[kind - 1], &linear, range, None, &mut out).unwrap();
    };
    // A piece's kind changes from round to round, so that every kind sees every piece.
    let times = together(threads, ROUNDS * pieces.len(), |step, thread| {
        let piece = step % pieces.len();
        work(piece, (step + step / pieces.len()) % kinds, thread);
    });
    let mut of_kind = vec![Vec::new(); kinds];
    for (step, time) in times.iter().enumerate() {
        of_kind[(step + step / pieces.len()) % kinds].push(*time);
    }
    let medians: Vec<f64> = of_kind.into_iter().map(median).collect();
    let gigabytes = (piece_panels * panel_bytes) as f64 / 1e9;
    let lines: Vec<String> = ROWS
        .iter()
        .zip(&medians[1..])
        .map(|(rows, time)| {
            format!(
                "{rows}: {:5.1} {:3.0}%",
                gigabytes / time,
                100.0 * medians[0] / time
            )
        })
        .collect();
    println!(
        "{name:24} read {:5.1} GB/s; rows {}; 8 rows cost {:.2} of 1",
        gigabytes / medians[0],
        lines.join(", "),
        medians[4] / medians[1]
    );
    black_box(&outs);
}

fn prefill(simd: Simd, name: &str, threads: usize, format: BlockFormat, rows: usize, width: usize) {
    const TOKENS: usize = 256;
    let memory = weights(format, rows, width, 1);
    let matrix = QuantizedMatrix::new(format, rows, width, &memory).unwrap();
    let linear = Linear { matrix, bias: None };
    let x = numbers(TOKENS * width);
    let tiles = tiles_of(width);
    let mut quantized = vec![QuantizedTile::default(); TOKENS * tiles];
    let mut out = vec![0.0; TOKENS * rows];
    let mut times = Vec::new();
    let mut rounding = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        for (x, tiles) in x.chunks_exact(width).zip(quantized.chunks_exact_mut(tiles)) {
            quantize(simd, x, None, tiles).unwrap();
        }
        rounding.push(start.elapsed().as_secs_f64());
        let target = Target(out.as_mut_ptr());
        together(threads, 1, |_, thread| {
            let of = |thread: usize| matrix.panels() * thread / threads;
            // SAFETY: threads write different panels' columns.
            let mut out = unsafe { RowsMut::from_raw(target.get(), TOKENS, rows) };
            multiply(
                simd,
                &quantized,
                &linear,
                of(thread)..of(thread + 1),
                None,
                &mut out,
            )
            .unwrap();
        });
        times.push(start.elapsed().as_secs_f64());
    }
    let time = median(times);
    println!(
        "{name:32} {:6.2} ms, {:5.0} GFLOP/s; rounding {:.2} ms",
        1e3 * time,
        2.0 * (TOKENS * rows * width) as f64 / time / 1e9,
        1e3 * median(rounding)
    );
    black_box(&out);
}

/// A result that threads write in parts.
struct Target(*mut f32);

// SAFETY: see the writers.
unsafe impl Sync for Target {}

impl Target {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

/// Runs `steps` steps on some threads, one step after the other; seconds of each.
fn together(threads: usize, steps: usize, work: impl Fn(usize, usize) + Sync) -> Vec<f64> {
    if threads == 1 {
        return (0..steps)
            .map(|step| {
                let start = Instant::now();
                work(step, 0);
                start.elapsed().as_secs_f64()
            })
            .collect();
    }
    let barrier = Barrier::new(threads);
    let work = &work;
    let barrier = &barrier;
    std::thread::scope(|scope| {
        for thread in 1..threads {
            scope.spawn(move || {
                for step in 0..steps {
                    barrier.wait();
                    work(step, thread);
                    barrier.wait();
                }
            });
        }
        (0..steps)
            .map(|step| {
                barrier.wait();
                let start = Instant::now();
                work(step, 0);
                barrier.wait();
                start.elapsed().as_secs_f64()
            })
            .collect()
    })
}

/// Some copies of a matrix of random quants, with every scale and minimum 1/64.
fn weights(format: BlockFormat, rows: usize, width: usize, copies: usize) -> Vec<u8> {
    let bytes = QuantizedMatrix::bytes_of(format, rows, width).unwrap();
    let mut noise = Noise(5);
    let some: Vec<u8> = (0..4099).map(|_| (noise.next() * 128.0) as i8 as u8).collect();
    let mut memory: Vec<u8> = Vec::new();
    memory.extend((0..copies * bytes).map(|i| some[i % some.len()]));
    let (scales, scale) = (
        format.tile_bytes() % 512,
        half::f16::from_f32(1.0 / 64.0).to_le_bytes(),
    );
    for tile in memory.chunks_exact_mut(format.tile_bytes()) {
        for pair in tile[..scales].chunks_exact_mut(2) {
            pair.copy_from_slice(&scale);
        }
    }
    memory
}

fn activations(simd: Simd, rows: usize, width: usize) -> Vec<QuantizedTile> {
    let mut out = vec![QuantizedTile::default(); rows * tiles_of(width)];
    for (x, tiles) in numbers(rows * width)
        .chunks_exact(width)
        .zip(out.chunks_exact_mut(tiles_of(width)))
    {
        quantize(simd, x, None, tiles).unwrap();
    }
    out
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn numbers(count: usize) -> Vec<f32> {
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
