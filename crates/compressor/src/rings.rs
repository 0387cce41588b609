//! Recorded queries: those of the newest tokens that score, of each layer and slot.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, TryLockError};

use half::{bf16, f16};
use reasoning_rpc_cpu::Element;

use crate::compressor::Compressor;
use crate::error::{Error, Result, refuse};
use crate::tensors::Queries;
use crate::types::Dtype;

/// The ring of one layer and slot, `[query tokens][heads][head_dim]`.
#[derive(Default)]
pub(crate) struct Ring {
    /// Tokens recorded since the slot began.
    tokens: u64,
    rows: Vec<f32>,
}

impl Ring {
    /// Fails unless so many tokens were recorded.
    pub(crate) fn check(&self, tokens: usize, slot: usize) -> Result<()> {
        if self.tokens < tokens as u64 {
            return refuse(
                format_args!("recorded queries of slot {slot}"),
                format_args!("those of at least {tokens} tokens"),
                self.tokens,
            );
        }
        Ok(())
    }

    /// The rows `[heads][head_dim]` of the newest `window` tokens, as many as the ring has, oldest first.
    pub(crate) fn tokens(&self, window: usize) -> impl Iterator<Item = &[f32]> {
        let width = self.rows.len() / window.max(1);
        let oldest = (self.tokens % window as u64) as usize;
        (0..window).map(move |token| &self.rows[(oldest + token) % window * width..][..width])
    }
}

/// All rings. They are never waited for: one that is in use is an error.
pub(crate) struct Rings {
    rings: Vec<Mutex<Ring>>,
    pub layers: usize,
    pub slots: usize,
}

impl Rings {
    pub(crate) fn new(layers: usize, slots: usize, floats: Option<usize>) -> Result<Self> {
        let count = layers.checked_mul(slots);
        let (count, floats) = count.zip(floats).ok_or(Error::OutOfMemory)?;
        let mut rings = Vec::new();
        rings.try_reserve_exact(count).map_err(|_| Error::OutOfMemory)?;
        for _ in 0..count {
            let mut rows = Vec::new();
            rows.try_reserve_exact(floats).map_err(|_| Error::OutOfMemory)?;
            rows.resize(floats, 0.0);
            rings.push(Mutex::new(Ring { tokens: 0, rows }));
        }
        Ok(Self { rings, layers, slots })
    }

    pub(crate) fn check_layer(&self, layer: u32) -> Result<()> {
        if layer as usize >= self.layers {
            return refuse("recorded layer", format_args!("below {}", self.layers), layer);
        }
        Ok(())
    }

    pub(crate) fn check_slot(&self, slot: i32) -> Result<usize> {
        match usize::try_from(slot) {
            Ok(slot) if slot < self.slots => Ok(slot),
            _ => refuse("recorded slot", format_args!("0 to below {}", self.slots), slot),
        }
    }

    /// The ring of a layer and slot that were checked.
    pub(crate) fn take(&self, layer: usize, slot: usize) -> Result<MutexGuard<'_, Ring>> {
        match self.rings[layer * self.slots + slot].try_lock() {
            Ok(ring) => Ok(ring),
            // Nothing that holds one can leave it half-written.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { layer, slot }),
        }
    }
}

impl Compressor {
    /// Records one token's rotated queries `[count][heads][head_dim]` of a layer for `count` slots (`None`:
    /// 0 to `count - 1`). `row_stride` and `head_stride` are elements from one slot's and head's to the next.
    ///
    /// # Errors
    /// A layer or slot without a ring, a slot that is named twice, strides or a dtype that cannot be: nothing
    /// was recorded. [`Error::Busy`]: another call is using a slot; those before it in the list were recorded.
    ///
    /// # Safety
    /// The queries are initialised, readable and not written meanwhile.
    #[allow(clippy::too_many_arguments)] // mirrors the C function
    pub unsafe fn record(
        &self,
        layer: u32,
        slots: Option<&[i32]>,
        count: usize,
        queries: *const c_void,
        row_stride: i64,
        head_stride: i64,
        dtype: Dtype,
    ) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.rings.check_layer(layer)?;
        match slots {
            Some(slots) if slots.len() != count => {
                return refuse("slots", format_args!("{count} of them"), slots.len());
            }
            Some(slots) => {
                let ascend = slots.is_sorted_by(|a, b| a < b);
                for (index, &slot) in slots.iter().enumerate() {
                    self.rings.check_slot(slot)?;
                    if !ascend && slots[..index].contains(&slot) {
                        return refuse(
                            format_args!("slots[{index}]"),
                            "each slot once",
                            format_args!("{slot} again"),
                        );
                    }
                }
            }
            None if count > self.rings.slots => {
                return refuse("slots", format_args!("at most {}", self.rings.slots), count);
            }
            None => {}
        }
        let strides = [row_stride, 0, head_stride];
        let counts = [count, 1, self.heads];
        // SAFETY: the caller's contract.
        unsafe {
            match dtype {
                Dtype::F32 => self.write(
                    layer,
                    slots,
                    count,
                    Queries::<f32>::new(queries, strides, counts, self.head_dim)?,
                ),
                Dtype::F16 => self.write(
                    layer,
                    slots,
                    count,
                    Queries::<f16>::new(queries, strides, counts, self.head_dim)?,
                ),
                Dtype::Bf16 => self.write(
                    layer,
                    slots,
                    count,
                    Queries::<bf16>::new(queries, strides, counts, self.head_dim)?,
                ),
                Dtype::I8 => refuse("dtype of queries", "F32, F16 or BF16", "I8"),
            }
        }
    }

    /// # Safety
    /// The queries are readable.
    unsafe fn write<E: Element>(
        &self,
        layer: u32,
        slots: Option<&[i32]>,
        count: usize,
        queries: Queries<E>,
    ) -> Result<()> {
        let window = self.query_tokens;
        for row in 0..count {
            let slot = slots.map_or(row, |slots| slots[row] as usize);
            let mut ring = self.rings.take(layer as usize, slot)?;
            let place = (ring.tokens % window as u64) as usize;
            let width = self.heads * self.head_dim;
            let token = &mut ring.rows[place * width..][..width];
            for (head, out) in token.chunks_exact_mut(self.head_dim).enumerate() {
                // SAFETY: the caller's contract.
                unsafe { queries.read([row, 0, head], out, E::to_f32) };
            }
            ring.tokens += 1;
        }
        Ok(())
    }

    /// The slot begins anew, in all layers.
    ///
    /// # Errors
    /// There is no such slot. [`Error::Busy`]: another call is using it; forget it again then.
    pub fn forget(&self, slot: i32) -> Result<()> {
        let slot = self.rings.check_slot(slot)?;
        for layer in 0..self.rings.layers {
            self.rings.take(layer, slot)?.tokens = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reasoning_rpc_core::RpcOptions;

    use super::*;
    use crate::types::{Options, Selection};

    #[test]
    fn a_slot_in_use_is_an_error_and_others_are_not() {
        let compressor = Compressor::new(&Options {
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            dtype: Dtype::F32,
            scale: None,
            selection: Selection::Rpc,
            rpc: RpcOptions::default(),
            max_merges: 0,
            recorded_layers: 2,
            recorded_sequences: 2,
        })
        .unwrap();
        let query = [1.0f32; 8];
        let record = |layer, slot: i32| {
            // SAFETY: one slot's query.
            unsafe { compressor.record(layer, Some(&[slot]), 1, query.as_ptr().cast(), 8, 8, Dtype::F32) }
        };
        let used = compressor.rings.take(1, 0).unwrap();
        let busy = Err(Error::Busy { layer: 1, slot: 0 });
        assert_eq!(record(1, 0), busy);
        assert_eq!(compressor.forget(0), busy);
        assert_eq!((record(0, 0), record(1, 1)), (Ok(()), Ok(())));
        drop(used);
        assert_eq!((record(1, 0), compressor.forget(0)), (Ok(()), Ok(())));
        assert!(record(2, 0).is_err() && record(0, 2).is_err() && record(0, -1).is_err());
    }
}
