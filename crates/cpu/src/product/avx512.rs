//! Sixteen output rows at a time: VNNI's `dpbusd` multiplies unsigned by signed bytes and adds four products to a 32-bit lane.

#![allow(clippy::needless_range_loop)] // registers, unrolled

use super::{BLOCK, BlockFormat, CACHE_LINE, PANEL_ROWS, PanelSums, Work};
use std::arch::x86_64::*;

const Q4_0: u8 = 0;
const Q4_1: u8 = 1;
const Q8_0: u8 = 2;

/// Whether the CPU has what [`panel`] needs beside AVX-512 F, BW, VL and DQ.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// See [`PanelKernel`](super::PanelKernel); needs AVX-512 F, BW and VNNI.
pub(super) unsafe fn panels(work: &Work<'_>, sums: &mut [PanelSums]) {
    // SAFETY: the caller has the instructions.
    unsafe {
        match work.format {
            BlockFormat::Q4_0 => for_count::<Q4_0>(work, sums),
            BlockFormat::Q4_1 => for_count::<Q4_1>(work, sums),
            BlockFormat::Q8_0 => for_count::<Q8_0>(work, sums),
        }
    }
}

/// The rows' sums stay in registers, so their number is a constant.
unsafe fn for_count<const FORMAT: u8>(work: &Work<'_>, sums: &mut [PanelSums]) {
    for (panel, sums) in work.panels.chunks_exact(work.panel_bytes()).zip(sums) {
        // SAFETY: the caller has the instructions.
        unsafe {
            match work.row_count() {
                1 => run::<FORMAT, 1>(work, panel, sums),
                2 => run::<FORMAT, 2>(work, panel, sums),
                3 => run::<FORMAT, 3>(work, panel, sums),
                4 => run::<FORMAT, 4>(work, panel, sums),
                5 => run::<FORMAT, 5>(work, panel, sums),
                6 => run::<FORMAT, 6>(work, panel, sums),
                7 => run::<FORMAT, 7>(work, panel, sums),
                _ => run::<FORMAT, 8>(work, panel, sums),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run<const FORMAT: u8, const ROWS: usize>(work: &Work<'_>, panel: &[u8], sums: &mut PanelSums) {
    let format = work.format;
    let mut totals = [_mm512_setzero_ps(); ROWS];
    for t in 0..work.tiles {
        // SAFETY: tile t of the panel and of each of the work's ROWS rows. A prefetch never faults.
        unsafe {
            let tile = panel.as_ptr().add(t * format.tile_bytes());
            let ahead = work.ahead(tile);
            for line in (0..format.tile_bytes()).step_by(CACHE_LINE) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
            }
            for block in 0..2 {
                let halves = |at: usize| {
                    let at = tile.add(at + 2 * block * PANEL_ROWS);
                    _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
                };
                let scales = halves(0);
                let minimums = if FORMAT == Q4_1 { halves(64) } else { scales };
                let weights = unsigned::<FORMAT>(tile.add(format.quants_at() + block * format.block_bytes()));
                for r in 0..ROWS {
                    let x = &*work.rows.as_ptr().add(r * work.tiles + t);
                    // What makes the weights unsigned is taken off again: 8, or 128, for every activation.
                    let start = _mm512_set1_epi32(x.minus_8_sums[block]);
                    let start = match FORMAT {
                        Q4_0 => start,
                        Q4_1 => _mm512_setzero_si512(),
                        _ => _mm512_slli_epi32::<4>(start),
                    };
                    let four = |j: usize| {
                        let four = x.quants.as_ptr().add(block * BLOCK + 4 * j);
                        _mm512_set1_epi32(four.cast::<i32>().read_unaligned())
                    };
                    // Two chains: each step waits for the one before.
                    let (mut even, mut odd) = (start, _mm512_setzero_si512());
                    for j in (0..8).step_by(2) {
                        even = _mm512_dpbusd_epi32(even, weights[j], four(j));
                        odd = _mm512_dpbusd_epi32(odd, weights[j + 1], four(j + 1));
                    }
                    let integer = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scales[block]));
                    totals[r] = _mm512_fmadd_ps(integer, scale, totals[r]);
                    if FORMAT == Q4_1 {
                        totals[r] = _mm512_fmadd_ps(minimums, _mm512_set1_ps(x.sums[block]), totals[r]);
                    }
                }
            }
        }
    }
    for (sums, total) in sums.iter_mut().zip(totals) {
        // SAFETY: the row's sixteen sums.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}

/// A block's weights as unsigned bytes: four of each output row in a register. Safety: `quants` is good for a block.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn unsigned<const FORMAT: u8>(quants: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    let load = |j: usize| unsafe { _mm512_loadu_si512(quants.add(64 * j).cast()) };
    let low = _mm512_set1_epi8(15);
    let mut weights = [low; 8];
    if FORMAT == Q8_0 {
        let sign = _mm512_set1_epi8(i8::MIN);
        for j in 0..8 {
            weights[j] = _mm512_xor_si512(load(j), sign);
        }
    } else {
        for j in 0..4 {
            let pairs = load(j);
            weights[j] = _mm512_and_si512(pairs, low);
            weights[4 + j] = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low);
        }
    }
    weights
}
