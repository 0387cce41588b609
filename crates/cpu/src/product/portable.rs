//! What every other path has to give, bit for bit, in plain Rust.

#![allow(clippy::needless_range_loop)] // lanes

use super::{BlockFormat, PANEL_ROWS, PanelSums, QuantizedTile, Work};
use crate::element::f16_to_f32;
use half::f16;

/// See [`PanelKernel`](super::PanelKernel).
pub(super) fn panels(work: &Work<'_>, sums: &mut [PanelSums]) {
    for (panel, sums) in work.panels.chunks_exact(work.panel_bytes()).zip(sums) {
        for (row, sums) in work.rows.chunks_exact(work.tiles).zip(sums) {
            *sums = [0.0; PANEL_ROWS];
            for (tile, x) in panel.chunks_exact(work.format.tile_bytes()).zip(row) {
                for block in 0..2 {
                    add_block(work.format, tile, x, block, sums);
                }
            }
        }
    }
}

fn add_block(
    format: BlockFormat,
    tile: &[u8],
    x: &QuantizedTile,
    block: usize,
    sums: &mut [f32; PANEL_ROWS],
) {
    let halves = |at: usize| -> [f32; PANEL_ROWS] {
        std::array::from_fn(|lane| {
            let at = at + 2 * (block * PANEL_ROWS + lane);
            f16_to_f32(f16::from_le_bytes([tile[at], tile[at + 1]]))
        })
    };
    let quants = &tile[format.quants_at() + block * format.block_bytes()..][..format.block_bytes()];
    let four = |j: usize| -> [i32; 4] {
        std::array::from_fn(|i| i32::from(x.quants[block * super::BLOCK + 4 * j + i]))
    };
    let mut integers = match format {
        BlockFormat::Q4_0 => [x.minus_8_sums[block]; PANEL_ROWS],
        _ => [0i32; PANEL_ROWS],
    };
    for (j, words) in quants.chunks_exact(4 * PANEL_ROWS).enumerate() {
        if format == BlockFormat::Q8_0 {
            let x = four(j);
            for lane in 0..PANEL_ROWS {
                for i in 0..4 {
                    integers[lane] += i32::from(words[4 * lane + i].cast_signed()) * x[i];
                }
            }
        } else {
            let (low, high) = (four(j), four(4 + j));
            for lane in 0..PANEL_ROWS {
                for i in 0..4 {
                    let pair = words[4 * lane + i];
                    integers[lane] += i32::from(pair & 15) * low[i] + i32::from(pair >> 4) * high[i];
                }
            }
        }
    }
    let scales = halves(0);
    for lane in 0..PANEL_ROWS {
        sums[lane] = (integers[lane] as f32).mul_add(scales[lane] * x.scales[block], sums[lane]);
    }
    if format == BlockFormat::Q4_1 {
        let minimums = halves(64);
        for lane in 0..PANEL_ROWS {
            sums[lane] = minimums[lane].mul_add(x.sums[block], sums[lane]);
        }
    }
}
