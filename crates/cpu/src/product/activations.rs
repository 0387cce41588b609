#![allow(clippy::needless_range_loop)] // fixed-size loops that become registers

use super::{BLOCK, TILE_WIDTH};
use crate::Simd;
use crate::error::{Error, exactly};
use crate::vector::{Kernel, Vector};

/// 64 activations of one row, rounded to 8 bits, with what a product needs beside them. Made by [`quantize`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(32))]
pub struct QuantizedTile {
    /// -127 to 127.
    pub(super) quants: [i8; TILE_WIDTH],
    /// One quant's worth, for each block.
    pub(super) scales: [f32; 2],
    /// -8 times the sum of a block's quants: what the 8 in `q - 8` adds up to.
    pub(super) minus_8_sums: [i32; 2],
    /// The sum of a block's quants times their scale: what a minimum is multiplied with.
    pub(super) sums: [f32; 2],
}

impl Default for QuantizedTile {
    fn default() -> Self {
        QuantizedTile {
            quants: [0; TILE_WIDTH],
            scales: [0.0; 2],
            minus_8_sums: [0; 2],
            sums: [0.0; 2],
        }
    }
}

impl QuantizedTile {
    /// The activations as the product sees them, quant times scale.
    pub fn values(&self) -> [f64; TILE_WIDTH] {
        std::array::from_fn(|k| f64::from(self.quants[k]) * f64::from(self.scales[k / BLOCK]))
    }
}

/// Tiles of a row of `width` activations.
pub const fn tiles_of(width: usize) -> usize {
    width.div_ceil(TILE_WIDTH)
}

/// An RMS norm: `x / sqrt(mean(x^2) + epsilon) * weight`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// One for each activation of a row.
    pub weight: &'a [f32],
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// Rounds one row of activations, after its RMS norm if there is one: per block of 32, scale `max|x| / 127`, quants to nearest, ties
/// to even. Behind the last the tiles are filled with zeros. A block with an activation that is not finite gets a scale that is not
/// finite, so that the products show it; one whose largest is below 4e-37 becomes zero.
///
/// # Errors
/// When `x` is not a multiple of 32 long, `out` not [`tiles_of`] that, or the norm's weight of another length.
pub fn quantize(
    simd: Simd,
    x: &[f32],
    norm: Option<Norm<'_>>,
    out: &mut [QuantizedTile],
) -> Result<(), Error> {
    simd.check()?;
    exactly("activations of a row beyond a multiple of 32", 0, x.len() % BLOCK)?;
    exactly("tiles of a row of activations", tiles_of(x.len()), out.len())?;
    if let Some(norm) = norm {
        exactly("weights of the norm", x.len(), norm.weight.len())?;
    }
    // SAFETY: the set is available; the kernel works on slices alone.
    unsafe { simd.run(Quantize { x, norm, out }) }
    Ok(())
}

struct Quantize<'a> {
    x: &'a [f32],
    norm: Option<Norm<'a>>,
    out: &'a mut [QuantizedTile],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let factor = self.norm.map(|norm| {
            let mean = sum_of_squares(self.x) / self.x.len() as f32;
            1.0 / (mean + norm.epsilon).sqrt()
        });
        for (index, tile) in self.out.iter_mut().enumerate() {
            *tile = QuantizedTile::default();
            for (which, block) in self.x[index * TILE_WIDTH..]
                .chunks_exact(BLOCK)
                .take(2)
                .enumerate()
            {
                let mut values = [0.0f32; BLOCK];
                values.copy_from_slice(block);
                if let (Some(norm), Some(factor)) = (self.norm, factor) {
                    let weight = &norm.weight[index * TILE_WIDTH + which * BLOCK..][..BLOCK];
                    for k in 0..BLOCK {
                        values[k] = values[k] * factor * weight[k];
                    }
                }
                round_block(&values, which, tile);
            }
        }
    }
}

/// In 32 partial sums and a pairwise tree: the same on every instruction set.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; BLOCK];
    for block in x.chunks_exact(BLOCK) {
        for k in 0..BLOCK {
            sums[k] += block[k] * block[k];
        }
    }
    let mut half = BLOCK / 2;
    while half > 0 {
        for k in 0..half {
            sums[k] += sums[k + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn round_block(values: &[f32; BLOCK], which: usize, tile: &mut QuantizedTile) {
    // As bits, magnitudes have the order of their numbers, infinity is above them and NaN above that.
    let mut largest = [0u32; BLOCK / 4];
    for part in values.chunks_exact(BLOCK / 4) {
        for k in 0..BLOCK / 4 {
            largest[k] = largest[k].max(part[k].to_bits() & 0x7fff_ffff);
        }
    }
    let largest = f32::from_bits(largest.iter().fold(0, |most, &bits| most.max(bits)));
    // The scale that is stored and its inverse are rounded apart: |x * inverse| is at most 127 and a little, which rounds to 127.
    let inverse = 127.0 / largest;
    let (scale, inverse) = if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if inverse.is_finite() {
        (largest / 127.0, inverse)
    } else {
        (0.0, 0.0)
    };
    // Numbers of at most 2^22 are rounded to nearest, ties to even, where a unit is the last place: in the bits of this sum.
    const MAGIC: f32 = 12_582_912.0;
    let mut quants = [0i32; BLOCK];
    for k in 0..BLOCK {
        let x = if scale.is_nan() { 0.0 } else { values[k] };
        quants[k] = (x * inverse + MAGIC).to_bits().cast_signed() - MAGIC.to_bits().cast_signed();
    }
    let mut sum = 0;
    for k in 0..BLOCK {
        sum += quants[k];
        tile.quants[which * BLOCK + k] = quants[k] as i8;
    }
    tile.scales[which] = scale;
    tile.minus_8_sums[which] = -8 * sum;
    tile.sums[which] = scale * sum as f32;
}
