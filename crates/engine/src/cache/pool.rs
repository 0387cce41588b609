//! The block pool: one address reservation of the budget's size, handed out in blocks.

#![allow(unsafe_code)] // mmap

use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// A block's index in its pool.
pub(crate) type BlockId = u32;

/// Blocks are aligned to a cache line, so that no two KV heads share one.
const ALIGNMENT: usize = 64;
/// Attention reads the whole cache for every token: with 4 KB pages it waits for address translation.
const HUGE_PAGE: usize = 2 << 20;

/// Fixed-size blocks under a byte budget.
///
/// The memory is reserved at once and becomes resident as blocks are first written. Blocks are
/// promised before they are taken ([`BlockPool::reserve`]), so that a request that was admitted
/// never meets an empty pool.
pub(crate) struct BlockPool {
    /// The first block, at a huge page's start.
    base: NonNull<u8>,
    mapping: NonNull<u8>,
    mapped: usize,
    block_bytes: usize,
    blocks: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: Vec<BlockId>,
    /// Blocks from here on were never handed out.
    fresh: usize,
    used: usize,
    /// Promised to accounts and not taken yet.
    promised: usize,
    /// The most blocks handed out at any moment.
    peak: usize,
    /// Requests that did not fit.
    refusals: u64,
}

/// What one sequence holds of a pool and what it was promised, in blocks.
#[derive(Debug, Default)]
pub(crate) struct Account {
    held: usize,
    reserved: usize,
}

impl Account {
    fn promise(&self) -> usize {
        self.reserved.saturating_sub(self.held)
    }

    /// Blocks promised in all, what is held included.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Blocks held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }
}

impl BlockPool {
    /// A pool of as many blocks as `budget` bytes hold.
    pub(crate) fn new(budget: usize, block_bytes: usize) -> Result<Self> {
        if !block_bytes.is_multiple_of(ALIGNMENT) {
            return Err(Error::Internal(format!(
                "block size: expected a multiple of {ALIGNMENT}, found {block_bytes}"
            )));
        }
        let blocks = (budget / block_bytes)
            .min(u32::MAX as usize)
            .min((isize::MAX as usize - HUGE_PAGE) / block_bytes);
        let mapped = blocks * block_bytes + HUGE_PAGE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Error::InvalidArgument(format!(
                "budget: {mapped} bytes of address space cannot be reserved: {}",
                std::io::Error::last_os_error()
            )));
        }
        let mapping: NonNull<u8> =
            NonNull::new(address.cast()).ok_or_else(|| Error::Internal("mmap returned address 0".into()))?;
        // SAFETY: the mapping has a huge page more than the blocks need, so they fit behind the offset.
        let base = unsafe { mapping.add(mapping.align_offset(HUGE_PAGE)) };
        // SAFETY: a range inside the mapping. That the kernel has no huge pages is no error.
        unsafe { libc::madvise(base.as_ptr().cast(), blocks * block_bytes, libc::MADV_HUGEPAGE) };
        Ok(Self {
            base,
            mapping,
            mapped,
            block_bytes,
            blocks,
            state: Mutex::default(),
        })
    }

    /// Bytes that all blocks together have.
    pub(crate) fn capacity(&self) -> usize {
        self.blocks * self.block_bytes
    }

    /// Bytes of the blocks that are handed out.
    pub(crate) fn used(&self) -> usize {
        self.lock().used * self.block_bytes
    }

    /// Promises an account `blocks` in all, what it holds included. A smaller promise than before
    /// gives the difference back.
    pub(crate) fn reserve(&self, account: &mut Account, blocks: usize) -> Result<()> {
        let mut state = self.lock();
        let before = account.promise();
        let after = blocks.saturating_sub(account.held);
        if after > before {
            self.check_available(&mut state, after - before)?;
        }
        state.promised = state.promised - before + after;
        account.reserved = blocks;
        Ok(())
    }

    /// Takes `count` blocks and appends their ids to `out`; takes none if there are not enough.
    pub(crate) fn take(&self, account: &mut Account, count: usize, out: &mut Vec<BlockId>) -> Result<()> {
        let mut state = self.lock();
        let promised = count.min(account.promise());
        self.check_available(&mut state, count - promised)?;
        for _ in 0..count {
            // What was freed last is warm in the caches.
            let id = state.free.pop().unwrap_or_else(|| {
                state.fresh += 1;
                (state.fresh - 1) as BlockId
            });
            out.push(id);
        }
        state.used += count;
        state.peak = state.peak.max(state.used);
        state.promised -= promised;
        account.held += count;
        Ok(())
    }

    /// Gives blocks back.
    pub(crate) fn give_back(&self, account: &mut Account, blocks: &[BlockId]) {
        let mut state = self.lock();
        let before = account.promise();
        account.held -= blocks.len();
        state.promised = state.promised - before + account.promise();
        state.used -= blocks.len();
        state.free.extend_from_slice(blocks);
    }

    /// Where a block begins.
    pub(crate) fn address(&self, id: BlockId) -> NonNull<u8> {
        debug_assert!((id as usize) < self.blocks);
        // SAFETY: ids are below `blocks`, so the offset stays inside the mapping.
        unsafe { self.base.add(id as usize * self.block_bytes) }
    }

    fn check_available(&self, state: &mut State, blocks: usize) -> Result<()> {
        let available = self.blocks - state.used - state.promised;
        if blocks > available {
            state.refusals += 1;
            return Err(Error::Budget {
                needed: blocks * self.block_bytes,
                available: available * self.block_bytes,
            });
        }
        Ok(())
    }

    /// Bytes promised and not taken yet, the most bytes handed out at any moment, and how many
    /// requests did not fit.
    pub(crate) fn figures(&self) -> (usize, usize, u64) {
        let state = self.lock();
        (
            state.promised * self.block_bytes,
            state.peak * self.block_bytes,
            state.refusals,
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlockPool {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; caches hold the pool alive (Arc).
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

// SAFETY: the pool hands out disjoint blocks; what is written to a block is the business of the one
// cache that holds it. The pool's own state is behind a mutex.
unsafe impl Send for BlockPool {}
// SAFETY: as above.
unsafe impl Sync for BlockPool {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_kept_and_refused_exactly() {
        let pool = BlockPool::new(10 * 64 + 63, 64).unwrap();
        assert_eq!(pool.capacity(), 640);
        let (mut a, mut b, mut out) = (Account::default(), Account::default(), Vec::new());
        pool.reserve(&mut a, 6).unwrap();
        pool.take(&mut b, 4, &mut out).unwrap();
        let refused = pool.take(&mut b, 1, &mut Vec::new()).unwrap_err();
        assert_eq!(
            refused,
            Error::Budget {
                needed: 64,
                available: 0
            }
        );
        let mut mine = Vec::new();
        pool.take(&mut a, 6, &mut mine).unwrap();
        assert_eq!(pool.used(), 640);
        pool.give_back(&mut a, &mine[..2]);
        // Still promised to `a`.
        assert!(pool.take(&mut b, 1, &mut Vec::new()).is_err());
        pool.reserve(&mut a, 0).unwrap();
        pool.take(&mut b, 2, &mut out).unwrap();
        let mut ids = [&out[..], &mine[2..]].concat();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10, "no block is held twice");
        pool.give_back(&mut a, &mine[2..]);
        pool.give_back(&mut b, &out);
        assert_eq!(pool.used(), 0);
    }
}
