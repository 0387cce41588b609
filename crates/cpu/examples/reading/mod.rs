//! Plain reading of memory: what the loops are compared with.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

/// Reads every cache line, as fast as one thread of this machine does so: some CPUs read faster if lines are fetched ahead, others
/// slower, and which it is the first call finds out.
pub fn sum_lines(memory: &[u8]) -> u64 {
    static FETCH: OnceLock<bool> = OnceLock::new();
    match FETCH.get_or_init(fetching_is_faster) {
        true => sum::<true>(memory),
        false => sum::<false>(memory),
    }
}

fn fetching_is_faster() -> bool {
    let memory = vec![1u8; 128 << 20];
    let best = |work: fn(&[u8]) -> u64| {
        let seconds = (0..8).map(|_| {
            let start = Instant::now();
            black_box(work(black_box(&memory)));
            start.elapsed().as_secs_f64()
        });
        seconds.fold(f64::INFINITY, f64::min)
    };
    best(sum::<true>) < best(sum::<false>)
}

fn sum<const FETCH: bool>(memory: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in memory.chunks_exact(64) {
        #[cfg(target_arch = "x86_64")]
        if FETCH {
            // SAFETY: a prefetch never faults.
            unsafe {
                use std::arch::x86_64::*;
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(8192).cast());
            }
        }
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum = sum.wrapping_add(u64::from_le_bytes(word.try_into().unwrap()));
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}
