use super::{
    MOST_PANELS, MOST_ROWS, PANEL_ROWS, PanelKernel, PanelSums, QuantizedMatrix, QuantizedTile, Work,
    portable, tiles_of,
};
use crate::Simd;
use crate::error::{Error, at_least, exactly, times};
use crate::vector::{Kernel, Vector};
use std::marker::PhantomData;
use std::ops::Range;

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
    let mut sums = [[[0.0; PANEL_ROWS]; MOST_ROWS]; MOST_PANELS];
    for (panels, rows) in parts(panels, out.rows) {
        // SAFETY: the set is available.
        unsafe { run(simd, x, matrix, &panels, &rows, end(matrix, &panels), &mut sums) };
        for (panel, sums) in panels.zip(&mut sums) {
            let first = panel * PANEL_ROWS;
            let count = PANEL_ROWS.min(width - first);
            let bias = linear.bias(first, count);
            for (row, sums) in rows.clone().zip(sums) {
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
        }
    }
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
    let mut gates = [[[0.0; PANEL_ROWS]; MOST_ROWS]; MOST_PANELS];
    let mut ups = gates;
    for (panels, rows) in parts(panels, out.rows) {
        // SAFETY: the set is available.
        unsafe {
            let next = up.matrix.panels_in(&panels).as_ptr();
            run(simd, x, &gate.matrix, &panels, &rows, next, &mut gates);
            run(
                simd,
                x,
                &up.matrix,
                &panels,
                &rows,
                end(&gate.matrix, &panels),
                &mut ups,
            );
        }
        for ((panel, gates), ups) in panels.zip(&mut gates).zip(&ups) {
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
            for (row, gates) in rows.clone().zip(gates) {
                out.write(row, first, &gates[..count]);
            }
        }
    }
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

/// All pairs of some panels and some rows that a kernel takes at a time. The panels of one are multiplied with all rows before the next
/// ones: they come from memory once.
fn parts(panels: Range<usize>, rows: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let end = panels.end;
    panels.step_by(MOST_PANELS).flat_map(move |panel| {
        let panels = panel..(panel + MOST_PANELS).min(end);
        (0..rows)
            .step_by(MOST_ROWS)
            .map(move |row| (panels.clone(), row..(row + MOST_ROWS).min(rows)))
    })
}

/// Where the panels behind some begin.
fn end(matrix: &QuantizedMatrix<'_>, panels: &Range<usize>) -> *const u8 {
    matrix.panels_in(panels).as_ptr_range().end
}

/// The sums of some panels and rows, as [`parts`] gives them, all of which exist. `next` is what will be read behind them.
///
/// # Safety
/// The instruction set is available.
unsafe fn run(
    simd: Simd,
    x: &[QuantizedTile],
    matrix: &QuantizedMatrix<'_>,
    panels: &Range<usize>,
    rows: &Range<usize>,
    next: *const u8,
    sums: &mut [PanelSums; MOST_PANELS],
) {
    let tiles = matrix.tiles();
    let work = Work {
        format: matrix.format(),
        panels: matrix.panels_in(panels),
        tiles,
        next,
        rows: &x[rows.start * tiles..rows.end * tiles],
    };
    // SAFETY: the caller's promise.
    unsafe { kernel(simd)(&work, &mut sums[..panels.len()]) }
}

/// The kernel for an instruction set that is available. AVX-512 without VNNI has no better one than AVX2's.
fn kernel(simd: Simd) -> PanelKernel {
    match simd {
        Simd::Portable => portable::panels,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 if super::avx512::is_available() => super::avx512::panels,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 | Simd::Avx512 => super::avx2::panels,
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable::panels,
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
