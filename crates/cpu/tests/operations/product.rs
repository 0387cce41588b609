//! The quantised product against its definition in `f64`: dequantised weights times quantised activations.

use crate::rng::Rng;
use crate::{EXP, U, flushing, paths};
use half::f16;
use reasoning_rpc_cpu::*;

/// A matrix in packed bytes, and its weights by the formats' definitions.
struct Matrix {
    format: BlockFormat,
    rows: usize,
    width: usize,
    bytes: Vec<u8>,
    /// `[rows][width]`.
    weights: Vec<f64>,
    /// The magnitude of what a weight is the sum of: `|d q|` and `|m|`, or `|d (q - 8)|`.
    magnitudes: Vec<f64>,
}

impl Matrix {
    /// Any quants, the extremes included, and scales of both signs, some of them denormal or zero. What lies behind the last output row
    /// is random too: nothing may look at it.
    fn random(rng: &mut Rng, format: BlockFormat, rows: usize, width: usize) -> Matrix {
        let size = QuantizedMatrix::bytes_of(format, rows, width).unwrap();
        let mut bytes: Vec<u8> = (0..size).map(|_| rng.between(0, 255) as u8).collect();
        let scales = if format == BlockFormat::Q4_1 { 128 } else { 64 };
        for tile in bytes.chunks_exact_mut(format.tile_bytes()) {
            for half in tile[..scales].chunks_exact_mut(2) {
                let scale = match rng.between(0, 9) {
                    0 => 0.0,
                    1 => rng.normal() * 1e-6,
                    _ => rng.normal() * 0.05,
                };
                half.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
        }
        let (mut weights, mut magnitudes) = (Vec::new(), Vec::new());
        for row in 0..rows {
            for k in 0..width {
                let (sum, magnitude) = weight(format, width, &bytes, row, k);
                weights.push(sum);
                magnitudes.push(magnitude);
            }
        }
        Matrix {
            format,
            rows,
            width,
            bytes,
            weights,
            magnitudes,
        }
    }

    fn view(&self) -> QuantizedMatrix<'_> {
        QuantizedMatrix::new(self.format, self.rows, self.width, &self.bytes).unwrap()
    }

    /// One output and a bound of its error, from `multiply`'s definition: per block one rounding of `d * scale`, one of each of at most
    /// two fused steps on a partial sum no larger than the magnitudes before it, and one of a Q4_1 block's `scale * sum`.
    fn expected(&self, row: usize, x: &[f64]) -> (f64, f64) {
        let weights = &self.weights[row * self.width..][..self.width];
        let magnitudes = &self.magnitudes[row * self.width..][..self.width];
        let sum: f64 = weights.iter().zip(x).map(|(w, x)| w * x).sum();
        let magnitude: f64 = magnitudes.iter().zip(x).map(|(m, x)| m * x.abs()).sum();
        let steps = 2.0 * self.width as f64 / 32.0 + 3.0;
        // The last: blocks whose products are below f32's normal range.
        (sum, steps * U * magnitude + self.width as f64 * 1e-38)
    }
}

/// Written from the layout's table in the module's documentation.
fn weight(format: BlockFormat, width: usize, bytes: &[u8], row: usize, k: usize) -> (f64, f64) {
    let (panel, lane) = (row / 16, row % 16);
    let tiles = width.div_ceil(64);
    let tile = &bytes[(panel * tiles + k / 64) * format.tile_bytes()..];
    let (block, k) = (k % 64 / 32, k % 32);
    let half = |at: usize| f64::from(f16::from_le_bytes([tile[at], tile[at + 1]]));
    let scale = half(2 * (16 * block + lane));
    match format {
        BlockFormat::Q8_0 => {
            let at = 64 + ((block * 8 + k / 4) * 16 + lane) * 4 + k % 4;
            let weight = scale * f64::from(tile[at].cast_signed());
            (weight, weight.abs())
        }
        _ => {
            let quants = if format == BlockFormat::Q4_1 { 128 } else { 64 };
            let at = quants + ((block * 4 + k % 16 / 4) * 16 + lane) * 4 + k % 4;
            let quant = f64::from(if k < 16 { tile[at] & 15 } else { tile[at] >> 4 });
            if format == BlockFormat::Q4_1 {
                let minimum = half(64 + 2 * (16 * block + lane));
                (scale * quant + minimum, (scale * quant).abs() + minimum.abs())
            } else {
                let weight = scale * (quant - 8.0);
                (weight, weight.abs())
            }
        }
    }
}

fn width(rng: &mut Rng) -> usize {
    32 * rng.between(1, 20)
}

/// Activations with large and small blocks, and some that are zero.
fn activations(rng: &mut Rng, rows: usize, width: usize) -> Vec<f32> {
    let mut x = rng.normals(rows * width);
    for block in x.chunks_exact_mut(32) {
        let factor = rng.pick(&[0.0, 1e-3, 1.0, 1.0, 30.0]);
        block.iter_mut().for_each(|x| *x *= factor);
    }
    x
}

fn quantized(simd: Simd, x: &[f32], width: usize) -> Vec<QuantizedTile> {
    let tiles = tiles_of(width);
    let mut out = vec![QuantizedTile::default(); x.len() / width * tiles];
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(tiles)) {
        quantize(simd, x, None, out).unwrap();
    }
    out
}

/// Row t as the product sees it.
fn values(x: &[QuantizedTile], t: usize, width: usize) -> Vec<f64> {
    let tiles = tiles_of(width);
    let row = &x[t * tiles..][..tiles];
    row.iter().flat_map(QuantizedTile::values).take(width).collect()
}

fn product(
    simd: Simd,
    x: &[QuantizedTile],
    matrix: &Matrix,
    bias: Option<&[f32]>,
    addend: Option<&[f32]>,
) -> Vec<f32> {
    let view = matrix.view();
    let rows = x.len() / tiles_of(matrix.width);
    let mut out = vec![f32::NAN; rows * matrix.rows];
    let linear = Linear { matrix: view, bias };
    let mut to = RowsMut::new(&mut out, rows, matrix.rows).unwrap();
    multiply(simd, x, &linear, 0..view.panels(), addend, &mut to).unwrap();
    out
}

#[test]
fn products_agree_with_the_definition() {
    let rng = &mut Rng::new();
    for _ in 0..40 {
        for format in BlockFormat::ALL {
            let (width, count) = (width(rng), rng.between(0, 20));
            let rows = rng.between(1, 70);
            let matrix = Matrix::random(rng, format, rows, width);
            let x = activations(rng, count, width);
            let bias = rng.normals(rows);
            let addend = rng.normals(count * rows);
            let bias = rng.coin(0.5).then_some(&bias[..]);
            let addend = rng.coin(0.5).then_some(&addend[..]);
            let mut first: Option<(Vec<QuantizedTile>, Vec<f32>)> = None;
            for simd in paths() {
                let x = quantized(simd, &x, width);
                let out = product(simd, &x, &matrix, bias, addend);
                for t in 0..count {
                    let x = values(&x, t, width);
                    for n in 0..rows {
                        let (mut expected, mut bound) = matrix.expected(n, &x);
                        for more in [bias.map(|b| b[n]), addend.map(|a| a[t * rows + n])] {
                            expected += f64::from(more.unwrap_or(0.0));
                            bound += U * (expected.abs() + bound);
                        }
                        let found = f64::from(out[t * rows + n]);
                        assert!(
                            (found - expected).abs() <= bound,
                            "{} {format:?} [{rows}, {width}] row {t} of {count}, output {n}: {found} for {expected} +- {bound}",
                            simd.name()
                        );
                    }
                }
                match &first {
                    None => first = Some((x, out)),
                    Some((first_x, first_out)) => {
                        assert!(&x == first_x, "{}: other quants", simd.name());
                        assert!(
                            out.iter()
                                .map(|x| x.to_bits())
                                .eq(first_out.iter().map(|x| x.to_bits())),
                            "{} {format:?}: other bits",
                            simd.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_rows_and_panels_beside_it() {
    let rng = &mut Rng::new();
    for _ in 0..30 {
        for format in BlockFormat::ALL {
            let (width, rows, count) = (width(rng), rng.between(1, 600), rng.between(2, 19));
            let matrix = Matrix::random(rng, format, rows, width);
            let x = activations(rng, count, width);
            for simd in paths() {
                let x = quantized(simd, &x, width);
                let all = product(simd, &x, &matrix, None, None);
                let tiles = tiles_of(width);
                for t in 0..count {
                    let alone = product(simd, &x[t * tiles..][..tiles], &matrix, None, None);
                    assert!(
                        alone == all[t * rows..][..rows],
                        "{} {format:?} row {t}",
                        simd.name()
                    );
                }
                let view = matrix.view();
                let mut parts = vec![f32::NAN; all.len()];
                let mut panel = 0;
                while panel < view.panels() {
                    let end = rng.between(panel + 1, view.panels());
                    let before = parts.clone();
                    let mut out = RowsMut::new(&mut parts, count, rows).unwrap();
                    let linear = Linear {
                        matrix: view,
                        bias: None,
                    };
                    multiply(simd, &x, &linear, panel..end, None, &mut out).unwrap();
                    for (i, (now, then)) in parts.iter().zip(&before).enumerate() {
                        let inside = (panel * 16..end * 16).contains(&(i % rows));
                        assert!(inside || now.to_bits() == then.to_bits(), "wrote elsewhere");
                    }
                    panel = end;
                }
                assert!(parts == all, "{} {format:?} in parts", simd.name());
            }
        }
    }
}

#[test]
fn flushing_denormals_changes_nothing_that_counts() {
    let rng = &mut Rng::new();
    for format in BlockFormat::ALL {
        let matrix = Matrix::random(rng, format, 48, 256);
        let x = activations(rng, 3, 256);
        for simd in paths() {
            let kept = product(simd, &quantized(simd, &x, 256), &matrix, None, None);
            let flushed = flushing(|| product(simd, &quantized(simd, &x, 256), &matrix, None, None));
            assert!(kept.iter().zip(&flushed).all(|(a, b)| (a - b).abs() < 1e-30));
        }
    }
}

#[test]
fn gated_products_are_silu_of_one_times_the_other() {
    let rng = &mut Rng::new();
    for _ in 0..30 {
        let (width, rows, count) = (width(rng), rng.between(1, 70), rng.between(1, 11));
        let (gate_format, up_format) = (rng.pick(&BlockFormat::ALL), rng.pick(&BlockFormat::ALL));
        let gate = Matrix::random(rng, gate_format, rows, width);
        let up = Matrix::random(rng, up_format, rows, width);
        let x = activations(rng, count, width);
        let biases = [rng.normals(rows), rng.normals(rows)];
        let bias = |i: usize| (rows % 2 == 0).then_some(&biases[i][..]);
        for simd in paths() {
            let x = quantized(simd, &x, width);
            let gates = product(simd, &x, &gate, bias(0), None);
            let ups = product(simd, &x, &up, bias(1), None);
            let mut out = vec![f32::NAN; gates.len()];
            let panels = gate.view().panels();
            let mut to = RowsMut::new(&mut out, count, rows).unwrap();
            let (gate, up) = (
                Linear {
                    matrix: gate.view(),
                    bias: bias(0),
                },
                Linear {
                    matrix: up.view(),
                    bias: bias(1),
                },
            );
            multiply_gated(simd, &x, &gate, &up, 0..panels, &mut to).unwrap();
            for ((gate, up), found) in gates.into_iter().zip(ups).zip(out) {
                let (gate, up, found) = (f64::from(gate), f64::from(up), f64::from(found));
                let expected = gate / (1.0 + (-gate).exp()) * up;
                // The exponential (exactly 0 below exp(-87.3)), and five roundings: 1 + e, the quotient, twice a product, e (1 - 0).
                let bound = (EXP + 6.0 * U) * expected.abs() + (gate * up).abs() * (-87.3f64).exp() + 1e-37;
                assert!(
                    (found - expected).abs() <= bound,
                    "{}: silu({gate}) * {up}: {found} for {expected}",
                    simd.name()
                );
            }
        }
    }
}

#[test]
fn activations_are_rounded_to_nearest() {
    let rng = &mut Rng::new();
    for _ in 0..200 {
        let width = width(rng);
        let x = activations(rng, 1, width);
        let weight = rng.normals(width);
        let norm = rng.coin(0.5).then_some(Norm {
            weight: &weight,
            epsilon: 1e-5,
        });
        let mut exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mut error = 0.0;
        if norm.is_some() {
            let mean = exact.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let factor = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
            exact
                .iter_mut()
                .zip(&weight)
                .for_each(|(x, &w)| *x *= factor * f64::from(w));
            // The sum of squares (width / 32 steps, 5 of the tree, one square), its root, and two products.
            error = (width as f64 / 64.0 + 8.0) * U;
        }
        for simd in paths() {
            let mut tiles = vec![QuantizedTile::default(); tiles_of(width)];
            quantize(simd, &x, norm, &mut tiles).unwrap();
            let found = tiles.iter().flat_map(QuantizedTile::values);
            for (block, found) in exact
                .chunks_exact(32)
                .zip(found.collect::<Vec<_>>().chunks_exact(32))
            {
                let largest = block.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
                let step = largest / 127.0;
                for (x, found) in block.iter().zip(found) {
                    // Half a step, as far as the scale, its inverse and the product are exact.
                    let bound = step * (0.5 + 127.0 * (8.0 * U + 2.0 * error)) + 4e-37;
                    assert!((x - found).abs() <= bound, "{}: {found} for {x}", simd.name());
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let rng = &mut Rng::new();
    for format in BlockFormat::ALL {
        let matrix = Matrix::random(rng, format, 20, 96);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = activations(rng, 3, 96);
            x[96 + rng.between(0, 95)] = bad;
            for simd in paths() {
                let out = product(simd, &quantized(simd, &x, 96), &matrix, None, None);
                assert!(out[20..40].iter().all(|y| y.is_nan()));
                assert!(out[..20].iter().chain(&out[40..]).all(|y| y.is_finite()));
            }
        }
    }
}

#[test]
fn a_row_of_the_matrix_is_its_weights() {
    let rng = &mut Rng::new();
    for _ in 0..20 {
        for format in BlockFormat::ALL {
            let (rows, width) = (rng.between(1, 40), width(rng));
            let matrix = Matrix::random(rng, format, rows, width);
            let row = rng.between(0, rows - 1);
            let mut out = vec![f32::NAN; width];
            matrix.view().row(row, &mut out).unwrap();
            for (k, &found) in out.iter().enumerate() {
                let (expected, magnitude) = (
                    matrix.weights[row * width + k],
                    matrix.magnitudes[row * width + k],
                );
                assert!((f64::from(found) - expected).abs() <= 2.0 * U * magnitude);
            }
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let simd = Simd::best();
    let format = BlockFormat::Q4_0;
    let bytes = vec![0; QuantizedMatrix::bytes_of(format, 20, 96).unwrap()];
    let matrix = QuantizedMatrix::new(format, 20, 96, &bytes).unwrap();
    assert_eq!((matrix.panels(), matrix.panel_bytes()), (2, 2 * 576));
    let text = |error: Error| error.to_string();
    let new = |rows, width, bytes: &[u8]| QuantizedMatrix::new(format, rows, width, bytes).map(|_| ());
    assert!(text(new(20, 90, &bytes).unwrap_err()).contains("multiple of 32"));
    assert!(text(new(20, 96, &bytes[1..]).unwrap_err()).contains("expected 2304, found 2303"));
    assert!(text(new(33, 96, &bytes).unwrap_err()).contains("expected 3456, found 2304"));
    assert!(matches!(new(usize::MAX, 96, &bytes), Err(Error::Overflow { .. })));

    let mut out = [0.0; 40];
    let tiles = [QuantizedTile::default(); 4];
    let bias = [0.0; 20];
    let linear = Linear {
        matrix,
        bias: Some(&bias),
    };
    let mut run = |x: &[QuantizedTile], linear: &Linear<'_>, panels, addend, shape: (usize, usize)| {
        let mut out = RowsMut::new(&mut out[..shape.0 * shape.1], shape.0, shape.1)?;
        multiply(simd, x, linear, panels, addend, &mut out)
    };
    assert_eq!(run(&tiles, &linear, 0..2, None, (2, 20)), Ok(()));
    for (found, expected) in [
        (
            run(&tiles[1..], &linear, 0..2, None, (2, 20)),
            "tiles of the activations: expected 4, found 3",
        ),
        (
            run(&tiles, &linear, 0..3, None, (2, 20)),
            "end of the panel range: at most 2",
        ),
        (
            run(&tiles, &linear, 0..2, None, (2, 19)),
            "width of the result: expected 20, found 19",
        ),
        (
            run(&tiles, &linear, 0..2, Some(&[0.0; 39]), (2, 20)),
            "numbers of the addend: expected 40, found 39",
        ),
        (
            run(
                &tiles,
                &Linear {
                    matrix,
                    bias: Some(&bias[1..]),
                },
                0..2,
                None,
                (2, 20),
            ),
            "numbers of the bias: expected 20, found 19",
        ),
    ] {
        let error = text(found.unwrap_err());
        assert!(error.contains(expected), "{error} for {expected}");
    }
    assert!(RowsMut::new(&mut [0.0; 5], 2, 3).is_err());
    let other = QuantizedMatrix::new(format, 16, 96, &bytes[..1152]).unwrap();
    let up = Linear {
        matrix: other,
        bias: None,
    };
    let mut to = RowsMut::new(&mut out, 2, 20).unwrap();
    assert!(multiply_gated(simd, &tiles, &linear, &up, 0..1, &mut to).is_err());

    let norm = Norm {
        weight: &[1.0; 32],
        epsilon: 1e-5,
    };
    let mut tile = [QuantizedTile::default(); 2];
    assert!(quantize(simd, &[0.0; 33], None, &mut tile[..1]).is_err());
    assert!(quantize(simd, &[0.0; 32], None, &mut tile).is_err());
    assert!(quantize(simd, &[0.0; 64], Some(norm), &mut tile[..1]).is_err());
    assert!(matrix.row(20, &mut [0.0; 96]).is_err());
    assert!(matrix.row(0, &mut [0.0; 95]).is_err());
}
