//! Products of quantised matrices with quantised activations: the linear layers of a decoder, at the speed of memory for a few rows
//! and of arithmetic for many.
//!
//! **Weights** lie in blocks of 32 along K (GGUF's Q4_0, Q4_1 and Q8_0, exactly: [`BlockFormat`]), packed for all instruction sets in
//! the same way, so that they are read in place from a mapped file. A matrix `[N, K]` is `N / 16` panels of 16 output rows, a panel
//! `K / 64` tiles of two blocks, both rounded up (filled with zeros). A tile is
//!
//! | bytes | content |
//! |---|---|
//! | `[2][16]` f16 | scales d: block, output row |
//! | `[2][16]` f16 | minimums m (Q4_1 only) |
//! | `[2][4][16][4]` u8 | 4 bits: block, j, output row, i; the low half is weight `4 j + i` of the block, the high half `16 + 4 j + i` |
//! | `[2][8][16][4]` i8 | 8 bits: block, j, output row, i; weight `4 j + i` of the block |
//!
//! all little-endian. One register of quants thus holds four weights of each output row, which four broadcast activations multiply: lanes
//! are output rows and nothing is ever summed across lanes.
//!
//! **Activations** are rounded to 8 bits with a scale for each block ([`quantize`], with an RMS norm in front where asked), as ONNX
//! Runtime's MatMulNBits does at accuracy_level 4.
//!
//! **The result** of a row is one chain of fused multiply-adds over the blocks in their order, on exact integer sums. It does not depend
//! on the rows beside it, the range of panels or the instruction set: all give the same bits. (But for [`multiply_gated`], whose
//! exponential is rounded differently.)

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod matrix;
mod multiply;
mod portable;

pub use activations::{Norm, QuantizedTile, quantize, tiles_of};
pub use matrix::{BlockFormat, QuantizedMatrix};
pub use multiply::{Linear, RowsMut, multiply, multiply_gated};

/// Output rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Weights of a block.
pub const BLOCK: usize = 32;
/// Weights along K of a tile: two blocks.
pub const TILE_WIDTH: usize = 2 * BLOCK;

/// Most activation rows that a kernel takes at a time.
const MOST_ROWS: usize = 8;

/// Most panels that a kernel takes at a time.
const MOST_PANELS: usize = 16;

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// How far ahead of a single row's product weights are fetched, in bytes. On Zen 3 a product without it reads 80% as fast as plain
/// reading, with 2 KB 103 to 106%, with 1, 4 or 8 KB 94 to 99%.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// The sums of one panel and each row of activations.
type PanelSums = [[f32; PANEL_ROWS]; MOST_ROWS];

/// What a kernel multiplies: 1 to [`MOST_PANELS`] panels of a matrix with 1 to [`MOST_ROWS`] rows of activations.
struct Work<'a> {
    format: BlockFormat,
    /// Whole panels, one after the other.
    panels: &'a [u8],
    /// Tiles of a panel, and of a row of activations; at least one.
    tiles: usize,
    /// What is read behind the panels: nothing but a hint.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    next: *const u8,
    /// Whole rows of activations.
    rows: &'a [QuantizedTile],
}

impl Work<'_> {
    fn panel_bytes(&self) -> usize {
        self.tiles * self.format.tile_bytes()
    }

    fn row_count(&self) -> usize {
        self.rows.len() / self.tiles
    }

    /// What is read [`AHEAD`] bytes behind `tile`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn ahead(&self, tile: *const u8) -> *const u8 {
        let (ahead, end) = (tile.wrapping_add(AHEAD), self.panels.as_ptr_range().end);
        if ahead < end {
            return ahead;
        }
        self.next.wrapping_add(ahead.addr() - end.addr())
    }
}

/// Writes the sums of each panel and row. Safety: the CPU has the kernel's instructions.
type PanelKernel = unsafe fn(work: &Work<'_>, sums: &mut [PanelSums]);
