//! Every operation on every instruction set of this CPU, against formulas in `f64`, published golden data and properties.
//!
//! Shapes and numbers are random: the seed of a run is printed when a test fails (`SEED=... cargo test` replays it). An instruction set
//! that this CPU lacks is named on stderr, never passed over in silence.
#![allow(unsafe_code)] // raw pages, and the guard page of `fence`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

mod append;
mod attend;
mod attend_int8;
mod attention;
mod cache;
mod compact;
mod fence;
mod golden;
mod host;
mod int8;
mod layouts;
mod memory;
mod misuse;
mod product;
mod rng;
mod rope;
mod score;
mod simd;

use reasoning_rpc_cpu::Simd;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;

/// Counts the allocations of each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, with a count beside it that itself allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Allocations of this thread so far.
fn allocations() -> usize {
    ALLOCATIONS.get()
}

/// The instruction sets to test; the others are reported.
fn paths() -> Vec<Simd> {
    let (run, lacking): (Vec<_>, Vec<_>) = Simd::ALL.into_iter().partition(|simd| simd.is_available());
    for simd in lacking {
        // Not `eprintln`, which the test harness keeps to itself when a test passes.
        let line = format!(
            "not run: {} (this CPU or build lacks it)
",
            simd.name()
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    run
}

/// Half a unit in the last place of 1: the largest relative error of one rounding to `f32`.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Bound on the relative error of the vectors' exponential: 2 units in the last place, each at most 2 U.
const EXP: f64 = 4.0 * U;

/// Bound on the error of a logit `scale * q . k` as the kernels compute it, from `scale * sum |q k|`: each product takes part in at most
/// D/8 sums of a lane, 4 of the tree, and has one rounding of its own (where the CPU does not fuse it) and one of the scale.
fn logit_error(head_dim: usize, magnitude: f64) -> f64 {
    (head_dim as f64 / 8.0 + 6.0) * U * magnitude
}

/// Runs something on a thread that flushes denormals, as runtimes set theirs.
#[cfg(target_arch = "x86_64")]
fn flushing<R>(run: impl FnOnce() -> R) -> R {
    use std::arch::asm;

    let mut before = 0u32;
    // SAFETY: reads and writes the register that says how denormals are treated; put back below.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut before) };
    let flush = before | 0x8040;
    // SAFETY: as above.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &flush) };
    let result = run();
    // SAFETY: as above.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &before) };
    result
}
