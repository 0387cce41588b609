use crate::error::{Error, exactly, plus, times};
use crate::pages::check_head_dim;
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};

/// Adds vectors `[count, head_dim]` to the sums of their elements, `sums[i]`, and of the products of those, `sums[head_dim + i *
/// head_dim + j]` for `j <= i`; what lies above the diagonal stays. One vector after the other, each product rounded before it is
/// added, so that every instruction set gives the same bits.
///
/// # Errors
/// When `vectors` is not a whole number of rows, or `sums` is not `head_dim * (head_dim + 1)` long.
pub fn add_moments(simd: Simd, vectors: &[f32], head_dim: usize, sums: &mut [f32]) -> Result<(), Error> {
    simd.check()?;
    check_head_dim(head_dim)?;
    exactly("floats beyond whole vectors", 0, vectors.len() % head_dim)?;
    let what = "floats of the moments";
    exactly(what, times(what, head_dim, plus(what, head_dim, 1)?)?, sums.len())?;
    // SAFETY: the set is available; the kernel works on checked slices.
    unsafe {
        simd.run(AddMoments {
            vectors,
            head_dim,
            sums,
        })
    }
    Ok(())
}

struct AddMoments<'a> {
    vectors: &'a [f32],
    head_dim: usize,
    sums: &'a mut [f32],
}

impl Kernel for AddMoments<'_> {
    type Output = ();

    /// Plain Rust that the compiler vectorises for the instruction set. Row by row, so that each stays in the
    /// first-level cache.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (first, second) = self.sums.split_at_mut(self.head_dim);
        for vector in self.vectors.chunks_exact(self.head_dim) {
            first.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
        }
        for (i, row) in second.chunks_exact_mut(self.head_dim).enumerate() {
            let row = &mut row[..=i];
            for vector in self.vectors.chunks_exact(self.head_dim) {
                let x = vector[i];
                row.iter_mut().zip(vector).for_each(|(sum, y)| *sum += x * y);
            }
        }
    }
}
