use super::{BLOCK, PANEL_ROWS, TILE_WIDTH};
use crate::element::f16_to_f32;
use crate::error::{Error, at_least, exactly, times};
use half::f16;
use std::ops::Range;

/// How a block of 32 weights is stored; the names are GGUF's. Scale d and minimum m are `f16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 4 bits, symmetric: `d * (q - 8)`.
    Q4_0,
    /// 4 bits with a minimum: `d * q + m`.
    Q4_1,
    /// 8 bits, symmetric: `d * q`, q of two's complement.
    Q8_0,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [BlockFormat; 3] = [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0];

    /// Bytes of a tile: 16 output rows and 64 weights along K.
    pub const fn tile_bytes(self) -> usize {
        self.quants_at() + 2 * self.block_bytes()
    }

    /// The format whose tiles have that many bytes.
    pub fn with_tile_bytes(bytes: usize) -> Option<BlockFormat> {
        BlockFormat::ALL
            .into_iter()
            .find(|format| format.tile_bytes() == bytes)
    }

    /// Where a tile's quants begin.
    pub(super) const fn quants_at(self) -> usize {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q8_0 => 64,
            BlockFormat::Q4_1 => 128,
        }
    }

    /// Bytes of the quants of 16 output rows and one block.
    pub(super) const fn block_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 => PANEL_ROWS * BLOCK / 2,
            BlockFormat::Q8_0 => PANEL_ROWS * BLOCK,
        }
    }
}

/// A quantised matrix `[rows, width]` in packed bytes, borrowed; the layout is the module's.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedMatrix<'a> {
    format: BlockFormat,
    rows: usize,
    width: usize,
    bytes: &'a [u8],
}

impl<'a> QuantizedMatrix<'a> {
    /// A view of `bytes`, which may lie at any address and are never copied. Any bytes are safe to multiply; what they mean is the
    /// caller's matter.
    ///
    /// # Errors
    /// When `width` is no multiple of 32, or there are not exactly [`QuantizedMatrix::bytes_of`] bytes.
    pub fn new(format: BlockFormat, rows: usize, width: usize, bytes: &'a [u8]) -> Result<Self, Error> {
        exactly(
            "width of a quantised matrix beyond a multiple of 32",
            0,
            width % BLOCK,
        )?;
        exactly(
            "bytes of a quantised matrix",
            Self::bytes_of(format, rows, width)?,
            bytes.len(),
        )?;
        Ok(QuantizedMatrix {
            format,
            rows,
            width,
            bytes,
        })
    }

    /// Bytes of a matrix `[rows, width]`.
    ///
    /// # Errors
    /// When they do not fit the address space.
    pub fn bytes_of(format: BlockFormat, rows: usize, width: usize) -> Result<usize, Error> {
        let what = "bytes of a quantised matrix";
        let tiles = times(what, rows.div_ceil(PANEL_ROWS), width.div_ceil(TILE_WIDTH))?;
        times(what, tiles, format.tile_bytes())
    }

    /// The format of its blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Output rows, N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights of a row, K.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Panels of 16 output rows; the last may have fewer.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        self.tiles() * self.format.tile_bytes()
    }

    pub(super) fn tiles(&self) -> usize {
        self.width.div_ceil(TILE_WIDTH)
    }

    /// The bytes of some panels, which exist.
    pub(super) fn panels_in(&self, panels: &Range<usize>) -> &'a [u8] {
        &self.bytes[panels.start * self.panel_bytes()..panels.end * self.panel_bytes()]
    }

    pub(super) fn check_panels(&self, panels: &Range<usize>) -> Result<(), Error> {
        at_least("end of the panel range", panels.start, panels.end)?;
        crate::error::at_most("end of the panel range", self.panels(), panels.end)
    }

    /// Writes one row's weights as `f32`, each rounded once (Q4_1: twice): the lookup in an embedding table.
    ///
    /// # Errors
    /// When there is no such row or `out` is not `width` long.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), Error> {
        crate::error::at_most("row of the matrix", self.rows.saturating_sub(1), row)?;
        at_least("rows of the matrix", 1, self.rows)?;
        exactly("numbers of a row", self.width, out.len())?;
        let (panel, lane) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let bytes = self.format.tile_bytes();
        let panel = &self.bytes[panel * self.panel_bytes()..][..self.panel_bytes()];
        for (index, block) in out.chunks_exact_mut(BLOCK).enumerate() {
            let (tile, which) = (index / 2, index % 2);
            let tile = &panel[tile * bytes..][..bytes];
            let half = |at: usize| {
                let at = at + 2 * (which * PANEL_ROWS + lane);
                f16_to_f32(f16::from_le_bytes([tile[at], tile[at + 1]]))
            };
            let (scale, minimum) = match self.format {
                BlockFormat::Q4_1 => (half(0), half(64)),
                _ => (half(0), 0.0),
            };
            let quants = &tile[self.format.quants_at() + which * self.format.block_bytes()..];
            let word = |j: usize| &quants[(j * PANEL_ROWS + lane) * 4..][..4];
            match self.format {
                BlockFormat::Q8_0 => {
                    for (j, four) in block.chunks_exact_mut(4).enumerate() {
                        for (weight, &quant) in four.iter_mut().zip(word(j)) {
                            *weight = scale * f32::from(quant.cast_signed());
                        }
                    }
                }
                _ => {
                    let zero = if self.format == BlockFormat::Q4_0 { 8 } else { 0 };
                    let (low, high) = block.split_at_mut(BLOCK / 2);
                    for j in 0..4 {
                        for (i, &pair) in word(j).iter().enumerate() {
                            let value = |quant: u8| scale * f32::from(quant.cast_signed() - zero) + minimum;
                            low[4 * j + i] = value(pair & 15);
                            high[4 * j + i] = value(pair >> 4);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
