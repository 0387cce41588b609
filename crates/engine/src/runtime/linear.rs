//! `reasoning_rpc::QuantizedLinear` and `reasoning_rpc::QuantizedGather`: products with quantised matrices, and rows of
//! them, read in place from the mapped file.
//!
//! A node of `QuantizedLinear` is the RMS norm in front (if it has a norm), up to three products that read the same
//! input, and a residual or a gate behind. Contract of both: ARCHITECTURE.md.

#![allow(unsafe_code)] // outputs are written by the workers in disjoint parts

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, TensorValueType};
use reasoning_rpc_cpu::{self as cpu, BlockFormat, Linear, Norm, QuantizedMatrix, RowsMut};

use super::operator::AttentionState;
use super::tensors::{input, optional_input, output};
use super::workers::{self, Parts};
use crate::error::{Error, Result, panic_text};

const LINEAR: &str = "QuantizedLinear";
const GATHER: &str = "QuantizedGather";
/// Matrices of a node.
const MOST: usize = 3;
/// Bytes of weights that a worker multiplies with one row at a time, about.
const UNIT_BYTES: usize = 64 << 10;
/// Panels that a worker multiplies with several rows at a time: the more, the less often it lays out their activations.
const UNIT_PANELS: usize = 16;
/// Units of a matrix for each worker, at least: they are to be done at the same time.
const UNITS_PER_WORKER: usize = 4;
/// Rows of activations that a worker quantises at a time.
const UNIT_ROWS: usize = 8;

pub(super) struct QuantizedLinear(pub(super) Arc<AttentionState>);

impl Operator for QuantizedLinear {
    type Kernel<'attr> = LinearKernel;

    fn name(&self) -> &str {
        LINEAR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Uint8};
        let (required, optional) = (OperatorInput::required, OperatorInput::optional);
        // x, norm, addend, then each matrix and its bias
        [
            required(Float32),
            optional(Float32),
            optional(Float32),
            required(Uint8),
            optional(Float32),
            optional(Uint8),
            optional(Float32),
            optional(Uint8),
            optional(Float32),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        use TensorElementType::Float32;
        [
            OperatorOutput::required(Float32),
            OperatorOutput::optional(Float32),
            OperatorOutput::optional(Float32),
        ]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let width = count(context, LINEAR, "width")?;
        let rows: Vec<i64> = required(context, LINEAR, "rows", "counts")?;
        let formats: String = required(context, LINEAR, "formats", "formats")?;
        let epsilon: f32 = required(context, LINEAR, "epsilon", "a number")?;
        let gated = match required::<i64>(context, LINEAR, "gated", "0 or 1")? {
            0 => false,
            1 => true,
            other => return Err(wrong(LINEAR, "gated", "0 or 1", other)),
        };
        let formats: Vec<&str> = formats.split(',').collect();
        if rows.is_empty() || rows.len() > MOST || rows.len() != formats.len() {
            let expected = format!("1 to {MOST}, and as many formats");
            return Err(wrong(
                LINEAR,
                "rows",
                &expected,
                format!("{rows:?} and {formats:?}"),
            ));
        }
        if gated && (rows.len() != 2 || rows[0] != rows[1]) {
            return Err(wrong(
                LINEAR,
                "rows",
                "two equal ones for a gate",
                format!("{rows:?}"),
            ));
        }
        let mut shapes = Vec::with_capacity(rows.len());
        for (index, (&rows, name)) in rows.iter().zip(formats).enumerate() {
            let shape = Shape {
                format: format_of(LINEAR, name)?,
                rows: usize::try_from(rows).map_err(|_| wrong(LINEAR, "rows", "counts", rows))?,
                width,
            };
            shapes.push(shape.check(LINEAR, context, 3 + 2 * index)?);
        }
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(wrong(LINEAR, "epsilon", "a number that is not negative", epsilon));
        }
        Ok(LinearKernel {
            state: Arc::clone(&self.0),
            shapes,
            epsilon,
            gated,
        })
    }
}

/// Format and dimensions of a matrix.
#[derive(Clone, Copy)]
struct Shape {
    format: BlockFormat,
    rows: usize,
    width: usize,
}

impl Shape {
    /// Input `index` of the node is such a matrix, and constant.
    fn check(self, operator: &str, context: &KernelContext<'_>, index: usize) -> ort::Result<Self> {
        let error = |text: String| ort::Error::new(format!("{operator}: input {index}: {text}"));
        if self.rows == 0 || self.width == 0 {
            return Err(error(format!(
                "expected a matrix, found {} rows of {}",
                self.rows, self.width
            )));
        }
        let value = context
            .constant_input::<TensorValueType<u8>>(index)
            .map_err(|cause| error(format!("expected bytes that are constant: {cause}")))?;
        self.matrix(value.try_extract_tensor::<u8>()?.1)
            .map_err(|cause| error(cause.to_string()))?;
        Ok(self)
    }

    fn matrix(self, bytes: &[u8]) -> Result<QuantizedMatrix<'_>> {
        Ok(QuantizedMatrix::new(self.format, self.rows, self.width, bytes)?)
    }
}

fn format_of(operator: &str, name: &str) -> ort::Result<BlockFormat> {
    match name {
        "q4_0" => Ok(BlockFormat::Q4_0),
        "q4_1" => Ok(BlockFormat::Q4_1),
        "q8_0" => Ok(BlockFormat::Q8_0),
        other => Err(wrong(
            operator,
            "format",
            "q4_0, q4_1 or q8_0",
            format!("{other:?}"),
        )),
    }
}

fn required<'attr, T: ort::operator::FromKernelContext<'attr>>(
    context: &KernelContext<'attr>,
    operator: &str,
    name: &str,
    expected: &str,
) -> ort::Result<T> {
    context
        .get::<T>(name)
        .ok_or_else(|| wrong(operator, name, expected, "none"))
}

fn count(context: &KernelContext<'_>, operator: &str, name: &str) -> ort::Result<usize> {
    let found: i64 = required(context, operator, name, "a count")?;
    usize::try_from(found).map_err(|_| wrong(operator, name, "a count", found))
}

fn wrong(operator: &str, name: &str, expected: &str, found: impl std::fmt::Display) -> ort::Error {
    ort::Error::new(format!(
        "{operator}: attribute {name}: expected {expected}, found {found}"
    ))
}

/// Nothing below ONNX Runtime's frames may unwind; what went wrong is kept in our own words.
fn guarded(state: &AttentionState, operator: &str, work: impl FnOnce() -> Result<()>) -> ort::Result<()> {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(Error::Internal(panic_text(&*payload))));
    state.step().times.products += start.elapsed();
    result.map_err(|error| {
        let text = format!("{operator}: {error}");
        state.step().failure = Some(error);
        ort::Error::new(text.replace('\0', " "))
    })
}

fn expect(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Model(format!(
        "{name}: expected {expected} elements, found {found}"
    )))
}

pub(super) struct LinearKernel {
    state: Arc<AttentionState>,
    shapes: Vec<Shape>,
    epsilon: f32,
    gated: bool,
}

impl Kernel for LinearKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(&self.state, LINEAR, || self.compute_node(context))
    }
}

impl LinearKernel {
    fn compute_node(&self, context: &ComputeContext) -> Result<()> {
        let width = self.shapes[0].width;
        let x = input::<f32>(context, 0)?;
        let tokens = x.len() / width;
        expect("x", x.len(), tokens * width)?;
        let norm = optional_input(context, 1)?.map(|weight| Norm {
            weight,
            epsilon: self.epsilon,
        });
        if let Some(norm) = norm {
            expect("norm", norm.weight.len(), width)?;
        }
        let addend = optional_input::<f32>(context, 2)?;
        if let Some(addend) = addend {
            expect("matrices beside an addend", self.shapes.len(), 1)?;
            expect("addend", addend.len(), tokens * self.shapes[0].rows)?;
        }
        let mut linears = [const { None }; MOST];
        for (index, shape) in self.shapes.iter().enumerate() {
            let bias = optional_input::<f32>(context, 4 + 2 * index)?;
            if let Some(bias) = bias {
                expect("bias", bias.len(), shape.rows)?;
            }
            linears[index] = Some(Linear {
                matrix: shape.matrix(input(context, 3 + 2 * index)?)?,
                bias,
            });
        }

        let tiles_of_row = cpu::tiles_of(width);
        let mut tiles = self.state.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        tiles.resize(tokens * tiles_of_row, cpu::QuantizedTile::default());
        let parts = Parts::new(&mut tiles);
        self.parallel(context, tokens.div_ceil(UNIT_ROWS), |unit| {
            for token in unit * UNIT_ROWS..((unit + 1) * UNIT_ROWS).min(tokens) {
                // SAFETY: each token's tiles are written by one worker.
                let to = unsafe { parts.part(token * tiles_of_row, tiles_of_row) };
                cpu::quantize(self.state.simd, &x[token * width..][..width], norm, to)?;
            }
            Ok(())
        })?;

        let count = if self.gated { 1 } else { self.shapes.len() };
        let mut addresses = [std::ptr::null_mut::<f32>(); MOST];
        for (index, address) in addresses.iter_mut().enumerate().take(count) {
            let rows = self.shapes[index].rows;
            // SAFETY: each output once.
            let numbers = unsafe { output(context, index, &[tokens as i64, rows as i64]) }?;
            expect("output", numbers.len(), tokens * rows)?;
            *address = numbers.as_mut_ptr();
        }
        self.multiply(context, &tiles, tokens, &linears, addend, &Outputs(addresses))
    }

    /// Calls `work` for every unit, on ONNX Runtime's threads where there are several of both.
    fn parallel(
        &self,
        context: &ComputeContext,
        units: usize,
        work: impl Fn(usize) -> Result<()> + Sync,
    ) -> Result<()> {
        if units <= 1 || self.state.threads == 1 {
            return (0..units).try_for_each(work);
        }
        workers::parallel(context, units, &work)
    }

    fn multiply(
        &self,
        context: &ComputeContext,
        tiles: &[cpu::QuantizedTile],
        tokens: usize,
        linears: &[Option<Linear<'_>>; MOST],
        addend: Option<&[f32]>,
        outputs: &Outputs,
    ) -> Result<()> {
        let simd = self.state.simd;
        let missing = || Error::Internal(format!("{LINEAR}: a matrix is missing"));
        if self.gated {
            let (Some(gate), Some(up)) = (&linears[0], &linears[1]) else {
                return Err(missing());
            };
            let units = Units::of(&gate.matrix, 2, tokens, self.state.threads);
            return self.parallel(context, units.count, |unit| {
                // SAFETY: the output has `tokens * rows` numbers; workers write the columns of different panels.
                let mut out = unsafe { RowsMut::from_raw(outputs.0[0], tokens, gate.matrix.rows()) };
                Ok(cpu::multiply_gated(
                    simd,
                    tiles,
                    gate,
                    up,
                    units.panels(unit),
                    &mut out,
                )?)
            });
        }
        let mut units = [Units::default(); MOST];
        for (units, linear) in units.iter_mut().zip(linears) {
            if let Some(linear) = linear {
                *units = Units::of(&linear.matrix, 1, tokens, self.state.threads);
            }
        }
        self.parallel(context, units.iter().map(|units| units.count).sum(), |unit| {
            let (mut index, mut unit) = (0, unit);
            while unit >= units[index].count {
                unit -= units[index].count;
                index += 1;
            }
            let linear = linears[index].as_ref().ok_or_else(missing)?;
            // SAFETY: as above.
            let mut out = unsafe { RowsMut::from_raw(outputs.0[index], tokens, linear.matrix.rows()) };
            let panels = units[index].panels(unit);
            Ok(cpu::multiply(simd, tiles, linear, panels, addend, &mut out)?)
        })
    }
}

/// Where the outputs begin.
struct Outputs([*mut f32; MOST]);

// SAFETY: the workers write disjoint parts of what lies there.
unsafe impl Sync for Outputs {}

/// A matrix cut for the workers. How it is cut changes no result.
#[derive(Clone, Copy, Default)]
struct Units {
    count: usize,
    /// Panels of a unit; the last may have fewer.
    size: usize,
    panels: usize,
}

impl Units {
    /// `together` such matrices are multiplied at once with `tokens` rows.
    fn of(matrix: &QuantizedMatrix<'_>, together: usize, tokens: usize, workers: usize) -> Self {
        let most = match tokens {
            1 => UNIT_BYTES / (together * matrix.panel_bytes()),
            _ => UNIT_PANELS,
        };
        let size = most
            .min(matrix.panels() / (UNITS_PER_WORKER * workers))
            .next_multiple_of(4)
            .max(4);
        Self {
            count: matrix.panels().div_ceil(size),
            size,
            panels: matrix.panels(),
        }
    }

    fn panels(&self, unit: usize) -> Range<usize> {
        unit * self.size..((unit + 1) * self.size).min(self.panels)
    }
}

pub(super) struct QuantizedGather(pub(super) Arc<AttentionState>);

impl Operator for QuantizedGather {
    type Kernel<'attr> = GatherKernel;

    fn name(&self) -> &str {
        GATHER
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        // indices, table
        [TensorElementType::Int64, TensorElementType::Uint8].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let format: String = required(context, GATHER, "format", "a format")?;
        let shape = Shape {
            format: format_of(GATHER, &format)?,
            rows: count(context, GATHER, "rows")?,
            width: count(context, GATHER, "width")?,
        };
        Ok(GatherKernel {
            state: Arc::clone(&self.0),
            shape: shape.check(GATHER, context, 1)?,
        })
    }
}

pub(super) struct GatherKernel {
    state: Arc<AttentionState>,
    shape: Shape,
}

impl Kernel for GatherKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(&self.state, GATHER, || self.compute_node(context))
    }
}

impl GatherKernel {
    fn compute_node(&self, context: &ComputeContext) -> Result<()> {
        let ids = input::<i64>(context, 0)?;
        let matrix = self.shape.matrix(input(context, 1)?)?;
        let width = self.shape.width;
        // SAFETY: once.
        let out = unsafe { output(context, 0, &[ids.len() as i64, width as i64]) }?;
        expect("output", out.len(), ids.len() * width)?;
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
            let row = usize::try_from(id).ok().filter(|&row| row < self.shape.rows);
            let row = row.ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{GATHER}: expected an index below {}, found {id}",
                    self.shape.rows
                ))
            })?;
            matrix.row(row, out)?;
        }
        Ok(())
    }
}
