use super::{
    MOST_ROWS, PANEL_ROWS, PanelKernel, PanelSums, QuantizedMatrix, QuantizedTile, portable, tiles_of,
};
use crate::Simd;
use crate::error::{Error, at_least, exactly, times};
use crate::vector::{Kernel, Vector};
use std::marker::PhantomData;
use std::ops::Range;

/// Weights that stay in the second-level cache while all rows of activations pass by.
const CHUNK_BYTES: usize = 160 << 10;

/// A matrix and what is added to its product.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[N, K]`.
    pub matrix: QuantizedMatrix<'a>,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
}

impl Linear<'_> {
    fn check(&self) -> Result<(), Error> {
        match self.bias {
            Some(bias) => exactly("numbers of the bias", self.matrix.rows(), bias.len()),
            None => Ok(()),
        }
    }

    /// The bias of a panel's output rows, zero where there is none.
    fn bias(&self, first: usize, count: usize) -> [f32; PANEL_ROWS] {
        let mut out = [0.0; PANEL_ROWS];
        if let Some(bias) = self.bias {
            out[..count].copy_from_slice(&bias[first..first + count]);
        }
        out
    }
}

/// A result `[rows, width]` to write to, packed.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: like `&mut [f32]`, which is `Send`.
unsafe impl Send for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// All of `data`.
    ///
    /// # Errors
    /// When it is not `rows * width` long.
    pub fn new(data: &'a mut [f32], rows: usize, width: usize) -> Result<Self, Error> {
        exactly(
            "numbers of the result",
            times("numbers of the result", rows, width)?,
            data.len(),
        )?;
        Ok(RowsMut {
            data: data.as_mut_ptr(),
            rows,
            width,
            lifetime: PhantomData,
        })
    }

    /// The result at `data`, so that several threads can each write the columns of their panels.
    ///
    /// # Safety
    /// For `'a`, `rows * width` numbers at `data` are valid for writes, and nobody else reads or writes those that this view is used to
    /// write: 16 columns, from `16 * panel`, for every panel.
    pub unsafe fn from_raw(data: *mut f32, rows: usize, width: usize) -> Self {
        RowsMut {
            data,
            rows,
            width,
            lifetime: PhantomData,
        }
    }

    /// Columns `first..first + numbers.len()` of a row; both exist.
    fn write(&mut self, row: usize, first: usize, numbers: &[f32]) {
        debug_assert!(row < self.rows && first + numbers.len() <= self.width);
        // SAFETY: inside the result, whose columns are this view's to write.
        unsafe {
            let to = self.data.add(row * self.width + first);
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len());
        }
    }
}

/// `out[t, n] = sum over k of weights[n, k] * x[t, k], + bias[n], + addend[t, n]` for the output rows n of some panels; the others of
/// `out` stay as they are. `x` is `[T, tiles_of(K)]` (see [`quantize`](super::quantize)), `addend` `[T, N]`.
///
/// The sum is taken over blocks in their order, then bias and addend are added, each rounded.
///
/// # Errors
/// When shapes disagree.
pub fn multiply(
    simd: Simd,
    x: &[QuantizedTile],
    linear: &Linear<'_>,
    panels: Range<usize>,
    addend: Option<&[f32]>,
    out: &mut RowsMut<'_>,
) -> Result<(), Error> {
    let matrix = &linear.matrix;
    check(simd, x, matrix, &panels, out)?;
    linear.check()?;
    if let Some(addend) = addend {
        exactly(
            "numbers of the addend",
            times("numbers of the addend", out.rows, out.width)?,
            addend.len(),
        )?;
    }
    let width = matrix.rows();
    let mut sums = [[0.0; PANEL_ROWS]; MOST_ROWS];
    // SAFETY: shapes were compared above and the set is available.
    let kernel = unsafe { PanelLoop::new(simd, x, matrix) };
    kernel.for_each(panels, out.rows, matrix.panel_bytes(), |kernel, panel, rows| {
        kernel.run(matrix, panel, rows.clone(), &mut sums);
        let first = panel * PANEL_ROWS;
        let count = PANEL_ROWS.min(width - first);
        let bias = linear.bias(first, count);
        for (row, sums) in rows.zip(&mut sums) {
            if linear.bias.is_some() {
                sums.iter_mut().zip(&bias).for_each(|(sum, &bias)| *sum += bias);
            }
            if let Some(addend) = addend {
                let addend = &addend[row * width + first..][..count];
                sums.iter_mut()
                    .zip(addend)
                    .for_each(|(sum, &addend)| *sum += addend);
            }
            out.write(row, first, &sums[..count]);
        }
    });
    Ok(())
}

/// `out[t, n] = silu(gate[t, n]) * up[t, n]` with `silu(g) = g / (1 + exp(-g))` and both factors as [`multiply`] gives them: a SwiGLU
/// layer's first half (Shazeer, arXiv 2002.05202).
///
/// # Errors
/// When shapes disagree.
pub fn multiply_gated(
    simd: Simd,
    x: &[QuantizedTile],
    gate: &Linear<'_>,
    up: &Linear<'_>,
    panels: Range<usize>,
    out: &mut RowsMut<'_>,
) -> Result<(), Error> {
    check(simd, x, &gate.matrix, &panels, out)?;
    check(simd, x, &up.matrix, &panels, out)?;
    gate.check()?;
    up.check()?;
    let width = gate.matrix.rows();
    let bytes = gate.matrix.panel_bytes() + up.matrix.panel_bytes();
    let (mut gates, mut ups) = ([[0.0; PANEL_ROWS]; MOST_ROWS], [[0.0; PANEL_ROWS]; MOST_ROWS]);
    // SAFETY: shapes were compared above and the set is available.
    let kernel = unsafe { PanelLoop::new(simd, x, &gate.matrix) };
    kernel.for_each(panels, out.rows, bytes, |kernel, panel, rows| {
        kernel.run(&gate.matrix, panel, rows.clone(), &mut gates);
        kernel.run(&up.matrix, panel, rows.clone(), &mut ups);
        let first = panel * PANEL_ROWS;
        let count = PANEL_ROWS.min(width - first);
        let silu = SiluTimes {
            gates: &mut gates[..rows.len()],
            ups: &ups[..rows.len()],
            gate_bias: &gate.bias(first, count),
            up_bias: &up.bias(first, count),
        };
        // SAFETY: the set is available; the kernel works on arrays alone.
        unsafe { simd.run(silu) };
        for (row, gates) in rows.zip(&gates) {
            out.write(row, first, &gates[..count]);
        }
    });
    Ok(())
}

fn check(
    simd: Simd,
    x: &[QuantizedTile],
    matrix: &QuantizedMatrix<'_>,
    panels: &Range<usize>,
    out: &RowsMut<'_>,
) -> Result<(), Error> {
    simd.check()?;
    matrix.check_panels(panels)?;
    exactly("width of the result", matrix.rows(), out.width)?;
    at_least("width of a quantised matrix", 1, matrix.width())?;
    exactly(
        "tiles of the activations",
        times("tiles of the activations", out.rows, tiles_of(matrix.width()))?,
        x.len(),
    )
}

/// Goes over rows of activations and panels so that weights come from memory once.
struct PanelLoop<'a> {
    kernel: PanelKernel,
    x: &'a [QuantizedTile],
    tiles: usize,
}

impl<'a> PanelLoop<'a> {
    /// # Safety
    /// The instruction set is available.
    unsafe fn new(simd: Simd, x: &'a [QuantizedTile], matrix: &QuantizedMatrix<'_>) -> Self {
        PanelLoop {
            kernel: kernel(simd),
            x,
            tiles: matrix.tiles(),
        }
    }

    /// Calls `each` for all pairs of a panel and a group of 1, 2, 4 or 8 rows.
    fn for_each(
        &self,
        panels: Range<usize>,
        rows: usize,
        panel_bytes: usize,
        mut each: impl FnMut(&Self, usize, Range<usize>),
    ) {
        let chunk = (CHUNK_BYTES / panel_bytes).max(1);
        for first_panel in panels.clone().step_by(chunk) {
            let mut row = 0;
            while row < rows {
                let left = rows - row;
                let group = if left >= MOST_ROWS {
                    MOST_ROWS
                } else {
                    1 << left.ilog2()
                };
                for panel in first_panel..(first_panel + chunk).min(panels.end) {
                    each(self, panel, row..row + group);
                }
                row += group;
            }
        }
    }

    /// The sums of a panel and 1, 2, 4 or 8 rows, all of which exist.
    fn run(&self, matrix: &QuantizedMatrix<'_>, panel: usize, rows: Range<usize>, sums: &mut PanelSums) {
        let mut pointers = [std::ptr::null(); MOST_ROWS];
        for (pointer, row) in pointers.iter_mut().zip(rows.clone()) {
            *pointer = self.x[row * self.tiles..][..self.tiles].as_ptr();
        }
        // SAFETY: `new` was promised the instruction set; the panel and the rows are sliced from what was checked.
        unsafe {
            (self.kernel)(
                matrix.format(),
                matrix.panel(panel),
                self.tiles,
                &pointers,
                rows.len(),
                sums,
            );
        }
    }
}

/// The kernel for an instruction set that is available. AVX-512 without VNNI has no better one than AVX2's.
fn kernel(simd: Simd) -> PanelKernel {
    match simd {
        Simd::Portable => portable::panel,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 if super::avx512::is_available() => super::avx512::panel,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 | Simd::Avx512 => super::avx2::panel,
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable::panel,
    }
}

/// `gates = silu(gates + gate_bias) * (ups + up_bias)`.
struct SiluTimes<'a> {
    gates: &'a mut [[f32; PANEL_ROWS]],
    ups: &'a [[f32; PANEL_ROWS]],
    gate_bias: &'a [f32; PANEL_ROWS],
    up_bias: &'a [f32; PANEL_ROWS],
}

impl Kernel for SiluTimes<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for (gates, ups) in self.gates.iter_mut().zip(self.ups) {
            let mut lane = 0;
            while lane < PANEL_ROWS {
                // SAFETY: sixteen numbers, and LANES divides sixteen.
                unsafe {
                    let at = gates.as_mut_ptr().add(lane);
                    let gate = V::load(at).add(V::load(self.gate_bias.as_ptr().add(lane)));
                    let up = V::load(ups.as_ptr().add(lane)).add(V::load(self.up_bias.as_ptr().add(lane)));
                    // With e = exp(-|g|), which cannot overflow: 1 / (1 + e), for a negative g e / (1 + e).
                    let zero = V::zero();
                    let one = V::splat(1.0);
                    let magnitude = gate.max(zero.sub(gate));
                    let e = zero.sub(magnitude).exp();
                    let positive = one.zero_where_less(gate, zero);
                    let numerator = positive.add(e.mul(one.sub(positive)));
                    let silu = gate.mul(numerator.div(one.add(e)));
                    silu.mul(up).store(at);
                }
                lane += V::LANES;
            }
        }
    }
}
