//! Eight output rows at a time: `maddubs` multiplies unsigned by signed bytes and adds pairs.
//!
//! For one row of activations this is far ahead of memory. For eight it is bound by the vector units: per 256 weights and row, of four
//! bits, 8 multiplications, 8 additions and 4 more to scale the sum.

#![allow(clippy::needless_range_loop)] // registers, unrolled

use super::{AHEAD, BLOCK, BlockFormat, CACHE_LINE, MOST_ROWS, PANEL_ROWS, PanelSums, QuantizedTile};
use std::arch::x86_64::*;

const Q4_0: u8 = 0;
const Q4_1: u8 = 1;
const Q8_0: u8 = 2;

/// See [`PanelKernel`](super::PanelKernel); needs AVX2, FMA and F16C.
pub(super) unsafe fn panel(
    format: BlockFormat,
    panel: *const u8,
    tiles: usize,
    rows: &[*const QuantizedTile; MOST_ROWS],
    count: usize,
    sums: &mut PanelSums,
) {
    // SAFETY: the caller's contract.
    unsafe {
        match (format, count) {
            (BlockFormat::Q4_0, 1) => run::<Q4_0, 1>(panel, tiles, rows, sums),
            (BlockFormat::Q4_0, 2) => run::<Q4_0, 2>(panel, tiles, rows, sums),
            (BlockFormat::Q4_0, 4) => run::<Q4_0, 4>(panel, tiles, rows, sums),
            (BlockFormat::Q4_0, _) => run::<Q4_0, 8>(panel, tiles, rows, sums),
            (BlockFormat::Q4_1, 1) => run::<Q4_1, 1>(panel, tiles, rows, sums),
            (BlockFormat::Q4_1, 2) => run::<Q4_1, 2>(panel, tiles, rows, sums),
            (BlockFormat::Q4_1, 4) => run::<Q4_1, 4>(panel, tiles, rows, sums),
            (BlockFormat::Q4_1, _) => run::<Q4_1, 8>(panel, tiles, rows, sums),
            (BlockFormat::Q8_0, 1) => run::<Q8_0, 1>(panel, tiles, rows, sums),
            (BlockFormat::Q8_0, 2) => run::<Q8_0, 2>(panel, tiles, rows, sums),
            (BlockFormat::Q8_0, 4) => run::<Q8_0, 4>(panel, tiles, rows, sums),
            (BlockFormat::Q8_0, _) => run::<Q8_0, 8>(panel, tiles, rows, sums),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<const FORMAT: u8, const ROWS: usize>(
    panel: *const u8,
    tiles: usize,
    rows: &[*const QuantizedTile; MOST_ROWS],
    sums: &mut PanelSums,
) {
    let format = match FORMAT {
        Q4_0 => BlockFormat::Q4_0,
        Q4_1 => BlockFormat::Q4_1,
        _ => BlockFormat::Q8_0,
    };
    let mut totals = [[_mm256_setzero_ps(); ROWS]; 2];
    for t in 0..tiles {
        // SAFETY: the caller's contract: tile t of the panel and of every row. A prefetch never faults.
        unsafe {
            let tile = panel.add(t * format.tile_bytes());
            for line in (0..format.tile_bytes()).step_by(CACHE_LINE) {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(AHEAD + line).cast());
            }
            for half in 0..2 {
                for block in 0..2 {
                    let scales = halves(tile, block, half);
                    let quants = tile.add(format.quants_at() + block * format.block_bytes() + 32 * half);
                    let x = |r: usize| &*rows[r].add(t);
                    let mut integers = [_mm256_setzero_si256(); ROWS];
                    if FORMAT == Q8_0 {
                        eight_bits(quants, block, x, &mut integers);
                    } else {
                        four_bits(quants, block, x, &mut integers);
                    }
                    for r in 0..ROWS {
                        let x = x(r);
                        let mut integer = integers[r];
                        if FORMAT == Q4_0 {
                            integer = _mm256_add_epi32(integer, _mm256_set1_epi32(x.minus_8_sums[block]));
                        }
                        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x.scales[block]));
                        totals[half][r] =
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(integer), scale, totals[half][r]);
                    }
                    if FORMAT == Q4_1 {
                        let minimums = halves(tile.add(64), block, half);
                        for r in 0..ROWS {
                            let sum = _mm256_set1_ps(x(r).sums[block]);
                            totals[half][r] = _mm256_fmadd_ps(minimums, sum, totals[half][r]);
                        }
                    }
                }
            }
        }
    }
    for half in 0..2 {
        for r in 0..ROWS {
            // SAFETY: eight of the row's sixteen sums.
            unsafe { _mm256_storeu_ps(sums[r].as_mut_ptr().add(8 * half), totals[half][r]) };
        }
    }
}

/// Eight output rows' scales of a block. Safety: `at` begins the scales of a tile.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn halves(at: *const u8, block: usize, half: usize) -> __m256 {
    // SAFETY: 64 bytes of scales.
    unsafe {
        _mm256_cvtph_ps(_mm_loadu_si128(
            at.add(2 * (block * PANEL_ROWS + 8 * half)).cast(),
        ))
    }
}

/// Four activations of a block in every lane. Safety: `j` is below 8.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn four(x: &QuantizedTile, block: usize, j: usize) -> __m256i {
    // SAFETY: 32 quants of each block.
    let four = unsafe {
        x.quants
            .as_ptr()
            .add(block * BLOCK + 4 * j)
            .cast::<i32>()
            .read_unaligned()
    };
    _mm256_set1_epi32(four)
}

/// All eight products of a block are added as 16-bit numbers: 8 * 2 * 15 * 127 is below 2^15.
/// Safety: `quants` is good for four registers, 64 bytes apart.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn four_bits<'a, const ROWS: usize>(
    quants: *const u8,
    block: usize,
    x: impl Fn(usize) -> &'a QuantizedTile,
    integers: &mut [__m256i; ROWS],
) {
    let low = _mm256_set1_epi8(15);
    let mut weights = [low; 8];
    for j in 0..4 {
        // SAFETY: the caller's contract.
        let pairs = unsafe { _mm256_loadu_si256(quants.add(64 * j).cast()) };
        weights[j] = _mm256_and_si256(pairs, low);
        weights[4 + j] = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low);
    }
    for r in 0..ROWS {
        // SAFETY: j is below 8.
        let product = |j: usize| unsafe { _mm256_maddubs_epi16(weights[j], four(x(r), block, j)) };
        let mut sum = product(0);
        for j in 1..8 {
            sum = _mm256_add_epi16(sum, product(j));
        }
        integers[r] = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    }
}

/// `|w| * (sign(w) x)`: a pair is at most 2 * 128 * 127, below 2^15.
/// Safety: `quants` is good for eight registers, 64 bytes apart.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn eight_bits<'a, const ROWS: usize>(
    quants: *const u8,
    block: usize,
    x: impl Fn(usize) -> &'a QuantizedTile,
    integers: &mut [__m256i; ROWS],
) {
    let ones = _mm256_set1_epi16(1);
    for j in 0..8 {
        // SAFETY: the caller's contract.
        let weights = unsafe { _mm256_loadu_si256(quants.add(64 * j).cast()) };
        let magnitudes = _mm256_abs_epi8(weights);
        for r in 0..ROWS {
            // SAFETY: j is below 8.
            let signed = unsafe { _mm256_sign_epi8(four(x(r), block, j), weights) };
            let pairs = _mm256_maddubs_epi16(magnitudes, signed);
            integers[r] = _mm256_add_epi32(integers[r], _mm256_madd_epi16(pairs, ones));
        }
    }
}
