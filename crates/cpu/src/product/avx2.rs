//! Eight output rows at a time: `maddubs` multiplies unsigned by signed bytes and adds pairs.
//!
//! A single row of activations is far ahead of memory. Several rows are bound by the vector units: per 256 weights of 4 bits and row, 8
//! multiplications, 7 additions and 5 instructions more for the sum. So that there is nothing else, their activations are laid out as
//! whole registers first ([`Spread`]), some tiles at a time, which stay in the first-level cache while several panels pass by.

#![allow(clippy::needless_range_loop)] // registers, unrolled

use super::{BLOCK, BlockFormat, CACHE_LINE, MOST_ROWS, PANEL_ROWS, PanelSums, QuantizedTile, Work};
use std::arch::x86_64::*;

const Q4_0: u8 = 0;
const Q4_1: u8 = 1;
const Q8_0: u8 = 2;

/// Tiles whose activations are spread at a time: of 8 rows 20 KB.
const SPREAD_TILES: usize = 4;

/// See [`PanelKernel`](super::PanelKernel); needs AVX2, FMA and F16C.
pub(super) unsafe fn panels(work: &Work<'_>, sums: &mut [PanelSums]) {
    // SAFETY: the caller has the instructions.
    unsafe {
        match (work.format, work.row_count()) {
            (BlockFormat::Q4_0, 1) => one_row::<Q4_0>(work, sums),
            (BlockFormat::Q4_0, _) => several_rows::<Q4_0>(work, sums),
            (BlockFormat::Q4_1, 1) => one_row::<Q4_1>(work, sums),
            (BlockFormat::Q4_1, _) => several_rows::<Q4_1>(work, sums),
            (BlockFormat::Q8_0, 1) => one_row::<Q8_0>(work, sums),
            (BlockFormat::Q8_0, _) => several_rows::<Q8_0>(work, sums),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn one_row<const FORMAT: u8>(work: &Work<'_>, sums: &mut [PanelSums]) {
    let format = work.format;
    for (panel, sums) in work.panels.chunks_exact(work.panel_bytes()).zip(sums) {
        let mut totals = [_mm256_setzero_ps(); 2];
        for (tile, x) in panel.chunks_exact(format.tile_bytes()).zip(work.rows) {
            let tile = tile.as_ptr();
            let ahead = work.ahead(tile);
            for line in (0..format.tile_bytes()).step_by(CACHE_LINE) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
            }
            for block in 0..2 {
                let spread = Spread::new::<FORMAT>(x, block);
                for half in 0..2 {
                    // SAFETY: a tile of the format.
                    let weights = unsafe { Weights::<FORMAT>::load(format, tile, block, half) };
                    totals[half] = weights.multiply(&spread, totals[half]);
                }
            }
        }
        for half in 0..2 {
            // SAFETY: eight of sixteen sums.
            unsafe { _mm256_storeu_ps(sums[0].as_mut_ptr().add(8 * half), totals[half]) };
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn several_rows<const FORMAT: u8>(work: &Work<'_>, sums: &mut [PanelSums]) {
    let (format, count) = (work.format, work.row_count().min(MOST_ROWS));
    let mut spread = [const { std::mem::MaybeUninit::<Spread>::uninit() }; 2 * SPREAD_TILES * MOST_ROWS];
    sums.iter_mut()
        .for_each(|sums| sums[..count].fill([0.0; PANEL_ROWS]));
    for first in (0..work.tiles).step_by(SPREAD_TILES) {
        let tiles = SPREAD_TILES.min(work.tiles - first);
        for t in 0..tiles {
            for block in 0..2 {
                for r in 0..count {
                    let x = &work.rows[r * work.tiles + first + t];
                    spread[(2 * t + block) * MOST_ROWS + r].write(Spread::new::<FORMAT>(x, block));
                }
            }
        }
        let next_tiles = match first + SPREAD_TILES < work.tiles {
            true => work
                .panels
                .as_ptr()
                .wrapping_add((first + SPREAD_TILES) * format.tile_bytes()),
            false => work.next,
        };
        let last = work.panels.len() / work.panel_bytes() - 1;
        for (index, (panel, sums)) in work
            .panels
            .chunks_exact(work.panel_bytes())
            .zip(&mut *sums)
            .enumerate()
        {
            // What comes next: these tiles of the next panel, and behind the last panel the first one's next tiles.
            let next = match index < last {
                true => panel
                    .as_ptr()
                    .wrapping_add(panel.len() + first * format.tile_bytes()),
                false => next_tiles,
            };
            for t in 0..tiles {
                let tile = panel[(first + t) * format.tile_bytes()..][..format.tile_bytes()].as_ptr();
                for line in (0..format.tile_bytes()).step_by(CACHE_LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(t * format.tile_bytes() + line).cast());
                }
                for block in 0..2 {
                    for half in 0..2 {
                        // SAFETY: a tile of the format.
                        let weights = unsafe { Weights::<FORMAT>::load(format, tile, block, half) };
                        for (r, sums) in sums[..count].iter_mut().enumerate() {
                            // SAFETY: `count` rows of this tile and block were written; eight of sixteen sums.
                            unsafe {
                                let x = spread[(2 * t + block) * MOST_ROWS + r].assume_init_ref();
                                let at = sums.as_mut_ptr().add(8 * half);
                                _mm256_storeu_ps(at, weights.multiply(x, _mm256_loadu_ps(at)));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A block of one row of activations, each number in all lanes.
struct Spread {
    /// Four activations, again and again.
    quants: [__m256i; 8],
    scale: __m256,
    /// Of Q4_0 `minus_8_sums`, of Q4_1 `sums`.
    sum: __m256i,
}

impl Spread {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new<const FORMAT: u8>(x: &QuantizedTile, block: usize) -> Spread {
        // SAFETY: 32 quants of each block.
        let four = |j: usize| unsafe { x.quants.as_ptr().add(block * BLOCK + 4 * j).cast::<i32>().read() };
        Spread {
            quants: std::array::from_fn(|j| _mm256_set1_epi32(four(j))),
            scale: _mm256_set1_ps(x.scales[block]),
            sum: match FORMAT {
                Q4_1 => _mm256_castps_si256(_mm256_set1_ps(x.sums[block])),
                _ => _mm256_set1_epi32(x.minus_8_sums[block]),
            },
        }
    }
}

/// A block of eight output rows. 4 bits: bytes below 16, four of each row in a register; 8 bits: where they lie.
struct Weights<const FORMAT: u8> {
    unsigned: [__m256i; 8],
    quants: *const u8,
    scales: __m256,
    minimums: __m256,
}

impl<const FORMAT: u8> Weights<FORMAT> {
    /// Safety: `tile` is good for a tile of the format; the weights are used no longer than that.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn load(format: BlockFormat, tile: *const u8, block: usize, half: usize) -> Self {
        // SAFETY: inside the tile.
        unsafe {
            let halves = |at: usize| {
                let at = tile.add(at + 2 * (block * PANEL_ROWS + 8 * half));
                _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
            };
            let quants = tile.add(format.quants_at() + block * format.block_bytes() + 32 * half);
            let low = _mm256_set1_epi8(15);
            let mut unsigned = [low; 8];
            if FORMAT != Q8_0 {
                for j in 0..4 {
                    let pairs = _mm256_loadu_si256(quants.add(64 * j).cast());
                    unsigned[j] = _mm256_and_si256(pairs, low);
                    unsigned[4 + j] = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low);
                }
            }
            let scales = halves(0);
            Weights {
                unsigned,
                quants,
                scales,
                minimums: if FORMAT == Q4_1 { halves(64) } else { scales },
            }
        }
    }

    /// `total` and the block's products.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn multiply(&self, x: &Spread, total: __m256) -> __m256 {
        let ones = _mm256_set1_epi16(1);
        let integer = match FORMAT {
            Q8_0 => {
                let mut sum = _mm256_setzero_si256();
                for j in 0..8 {
                    // SAFETY: `load`'s contract.
                    let weights = unsafe { _mm256_loadu_si256(self.quants.add(64 * j).cast()) };
                    // |w| * (sign(w) x): a pair is at most 2 * 128 * 127, below 2^15.
                    let signed = _mm256_sign_epi8(x.quants[j], weights);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
                sum
            }
            _ => {
                // All eight products are added as 16-bit numbers: 8 * 2 * 15 * 127 is below 2^15.
                let mut sum = _mm256_maddubs_epi16(self.unsigned[0], x.quants[0]);
                for j in 1..8 {
                    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(self.unsigned[j], x.quants[j]));
                }
                _mm256_madd_epi16(sum, ones)
            }
        };
        let integer = match FORMAT {
            Q4_0 => _mm256_add_epi32(integer, x.sum),
            _ => integer,
        };
        let total = _mm256_fmadd_ps(
            _mm256_cvtepi32_ps(integer),
            _mm256_mul_ps(self.scales, x.scale),
            total,
        );
        match FORMAT {
            Q4_1 => _mm256_fmadd_ps(self.minimums, _mm256_castsi256_ps(x.sum), total),
            _ => total,
        }
    }
}
