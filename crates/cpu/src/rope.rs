use crate::error::{Error, exactly};
use crate::pages::check_head_dim;
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};

/// Cosines and sines of the rotary embedding, `[T, head_dim / 2]` each, replacing what `cos` and `sin` held.
///
/// The angle is `(position as f32) * inv_freq[i]`, rounded to `f32` as Hugging Face Transformers does; its cosine and sine are taken in
/// `f64` and rounded once, then multiplied by `attention_factor`. Every set of numbers is the same on every CPU of one `libm`.
pub fn rope_table(
    positions: &[i64],
    inv_freq: &[f32],
    attention_factor: f32,
    cos: &mut Vec<f32>,
    sin: &mut Vec<f32>,
) {
    cos.clear();
    sin.clear();
    for &position in positions {
        for &frequency in inv_freq {
            let angle = f64::from(position as f32 * frequency);
            cos.push(angle.cos() as f32 * attention_factor);
            sin.push(angle.sin() as f32 * attention_factor);
        }
    }
}

/// Rotates all heads of one token: `x` and `out` are `[heads, head_dim]`, `cos` and `sin` the token's row of [`rope_table`],
/// `head_dim / 2` numbers each. Half-split convention (GPT-NeoX, Llama in Hugging Face layout), each product rounded before the sum,
/// so that every instruction set gives the same bits:
///
/// `out[i] = x[i] cos[i] - x[i + D/2] sin[i]`, `out[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i]`.
///
/// # Errors
/// When `x` is not a whole number of heads, `out` is not as long as `x`, or `cos` or `sin` is not half a head.
pub fn rotate(
    simd: Simd,
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    head_dim: usize,
    out: &mut [f32],
) -> Result<(), Error> {
    simd.check()?;
    check_head_dim(head_dim)?;
    exactly("floats beyond whole heads in x", 0, x.len() % head_dim)?;
    exactly("floats in out", x.len(), out.len())?;
    exactly("cosines", head_dim / 2, cos.len())?;
    exactly("sines", head_dim / 2, sin.len())?;
    // SAFETY: the set is available; the kernel works on checked slices.
    unsafe { simd.run(Rotate { x, cos, sin, out }) }
    Ok(())
}

struct Rotate<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    /// Plain Rust that the compiler vectorises for the instruction set.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let half = self.cos.len();
        for (x, out) in self
            .x
            .chunks_exact(2 * half)
            .zip(self.out.chunks_exact_mut(2 * half))
        {
            let (x_low, x_high) = x.split_at(half);
            let (out_low, out_high) = out.split_at_mut(half);
            for i in 0..half {
                out_low[i] = x_low[i] * self.cos[i] - x_high[i] * self.sin[i];
                out_high[i] = x_high[i] * self.cos[i] + x_low[i] * self.sin[i];
            }
        }
    }
}
