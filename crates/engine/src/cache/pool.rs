//! The block pool: one address reservation of the budget's size, handed out in blocks.

#![allow(unsafe_code)] // mmap

use std::collections::HashSet;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{PoisonError, Weak};

#[cfg(feature = "shuttle")]
use ::shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(feature = "shuttle"))]
use std::sync::{Mutex, MutexGuard};

use super::ledger::{Account, BlockId, Ledger, Share};
use crate::error::{Error, Result};
use crate::huge_pages::{HUGE_PAGE, HugePages};

/// Blocks are aligned to a cache line, so that no two KV heads share one.
const ALIGNMENT: usize = 64;

/// Fixed-size blocks under a byte budget.
///
/// The memory is reserved at once and becomes resident as blocks are first written. Blocks are
/// promised before they are taken ([`BlockPool::reserve`]), so that a request that was admitted
/// never meets an empty pool. Blocks may be shared ([`BlockPool::share`]) and are copied before one
/// of their holders writes them ([`BlockPool::own`]); the [`Ledger`] counts all of it.
pub(crate) struct BlockPool {
    /// The blocks, one behind the other.
    memory: HugePages,
    block_bytes: usize,
    blocks: usize,
    ledger: Mutex<Ledger>,
    watchers: std::sync::Mutex<Vec<Weak<Watcher>>>,
}

/// Told after blocks or promises were given back. It holds no lock of the pool's and must take none.
pub(crate) type Watcher = dyn Fn() + Send + Sync;

/// How a sequence holds a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Alone: it may write.
    Alone,
    /// Perhaps with others; it may have to write, after [`BlockPool::own`].
    Writer,
    /// Perhaps with others, and it will not write: no copy is promised. One that has to write after
    /// all claims the block first.
    Reader,
}

/// A [`Held`] that a fork changes through a shared reference, under the pool's lock.
#[derive(Debug)]
pub(crate) struct Hold(AtomicU8);

impl Hold {
    pub(crate) fn new(held: Held) -> Self {
        Self(AtomicU8::new(held as u8))
    }

    pub(crate) fn get(&self) -> Held {
        match self.0.load(Ordering::Relaxed) {
            0 => Held::Alone,
            1 => Held::Writer,
            _ => Held::Reader,
        }
    }

    pub(crate) fn set(&self, held: Held) {
        self.0.store(held as u8, Ordering::Relaxed);
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
        let bytes = blocks * block_bytes;
        let memory = HugePages::new(bytes).map_err(|error| {
            Error::InvalidArgument(format!(
                "budget: {bytes} bytes of address space cannot be reserved: {error}"
            ))
        })?;
        Ok(Self {
            memory,
            block_bytes,
            blocks,
            ledger: Mutex::new(Ledger::new(blocks, block_bytes)),
            watchers: std::sync::Mutex::default(),
        })
    }

    /// Tells `watcher`, for as long as it lives, when something was given back.
    pub(crate) fn watch(&self, watcher: Weak<Watcher>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
    }

    /// For caches that have given something back.
    pub(crate) fn tell_watchers(&self) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher();
        }
    }

    /// Bytes that all blocks together have.
    pub(crate) fn capacity(&self) -> usize {
        self.blocks * self.block_bytes
    }

    /// Bytes of the blocks that are handed out; of a shared one, once.
    pub(crate) fn used(&self) -> usize {
        self.lock().used() * self.block_bytes
    }

    /// Blocks used and blocks promised, at one moment.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        let ledger = self.lock();
        (ledger.used(), ledger.promised())
    }

    #[cfg(all(test, feature = "shuttle"))]
    pub(crate) fn is_shared(&self, id: BlockId) -> bool {
        self.lock().is_shared(id)
    }

    /// [`Ledger::fits`].
    pub(crate) fn fits(&self, account: &Account, blocks: usize, claims: &[BlockId]) -> bool {
        self.lock().fits(account, blocks, claims)
    }

    /// Whether the holders of `blocks`, to whom so many more are promised, hold and are promised all that
    /// anyone is.
    pub(crate) fn is_all_there_is(&self, blocks: &HashSet<BlockId>, promised: usize) -> bool {
        let ledger = self.lock();
        (ledger.used(), ledger.promised_to_accounts()) == (blocks.len(), promised)
    }

    /// [`Ledger::reserve`].
    pub(crate) fn reserve(&self, account: &mut Account, blocks: usize, claims: &[BlockId]) -> Result<()> {
        self.lock().reserve(account, blocks, claims)
    }

    /// [`Ledger::take`].
    pub(crate) fn take(
        &self,
        account: &mut Account,
        count: usize,
        claims: &[BlockId],
        out: &mut Vec<BlockId>,
    ) -> Result<()> {
        self.lock().take(account, count, claims, out)
    }

    /// Before a writer writes a block: copies it if another holds it too. The block that is the
    /// writer's alone, and may have another id.
    pub(crate) fn own(&self, id: BlockId) -> BlockId {
        let mut ledger = self.lock();
        let Some(copy) = ledger.copy(id) else {
            return id;
        };
        let (from, to) = (self.address(id), self.address(copy));
        // SAFETY: both are blocks of this pool and differ. Nobody writes `from`: it was shared until
        // now, and a holder that is alone with it learns that from `own`, which waits for this lock.
        // `to` has no other holder yet.
        unsafe { from.copy_to_nonoverlapping(to, self.block_bytes) };
        copy
    }

    /// Shares blocks with a new holder, whose account is `account`: each with how it is held, which
    /// becomes how both hold it. Changes nothing if the copies cannot be promised.
    pub(crate) fn share(&self, account: &mut Account, blocks: &[(BlockId, &Hold, Held)]) -> Result<()> {
        // Forks of one sequence at the same time take turns here, with all that they read and write.
        let mut ledger = self.lock();
        let shares: Vec<Share> = blocks
            .iter()
            .map(|&(id, hold, after)| Share {
                id,
                was_writer: hold.get() != Held::Reader,
                writers: after != Held::Reader,
            })
            .collect();
        ledger.share(account, &shares)?;
        for (_, hold, after) in blocks {
            hold.set(*after);
        }
        Ok(())
    }

    /// Gives blocks back, each with how it was held.
    pub(crate) fn let_go(&self, account: &mut Account, blocks: &[(BlockId, Held)]) {
        let blocks = blocks.iter().map(|&(id, held)| (id, held != Held::Reader));
        self.lock().let_go(account, blocks);
    }

    /// Gives the whole pages of blocks that nobody holds back to the system, at once. The bytes that were
    /// resident there. The blocks stay the pool's: whoever takes one gets new pages as it writes them.
    pub(crate) fn trim(&self) -> usize {
        // Nobody takes a block meanwhile.
        let ledger = self.lock();
        let mut free = ledger.free().to_vec();
        free.sort_unstable();
        // Behind all blocks that were ever written, nothing is resident but the rest of a huge page.
        let touched = ledger.touched() * self.block_bytes;
        let end = touched.next_multiple_of(HUGE_PAGE).min(self.capacity());
        let mut runs: Vec<Range<usize>> = Vec::new();
        let blocks = free.iter().map(|&id| {
            let start = id as usize * self.block_bytes;
            start..start + self.block_bytes
        });
        for next in blocks.chain(std::iter::once(touched..end)) {
            match runs.last_mut() {
                Some(run) if run.end == next.start => run.end = next.end,
                _ => runs.push(next),
            }
        }
        runs.into_iter().map(|run| self.drop_pages(run)).sum()
    }

    /// Drops the whole pages among these bytes of the pool, which nobody holds. The bytes that were resident.
    fn drop_pages(&self, bytes: Range<usize>) -> usize {
        // SAFETY: no preconditions.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let (start, end) = (bytes.start.next_multiple_of(page), bytes.end / page * page);
        let mut resident = 0;
        let mut states = [0u8; 1024];
        let mut at = start;
        while at < end {
            let pages = ((end - at) / page).min(states.len());
            // SAFETY: whole pages of the mapping, which begins at a huge page's start, and a state for each; no
            // one else reads or writes these blocks, whose contents nobody relies on.
            let dropped = unsafe {
                let address = self.memory.at(at).as_ptr().cast();
                let known = libc::mincore(address, pages * page, states.as_mut_ptr()) == 0;
                known && libc::madvise(address, pages * page, libc::MADV_DONTNEED) == 0
            };
            if dropped {
                resident += states[..pages].iter().filter(|&state| state & 1 == 1).count();
            }
            at += pages * page;
        }
        resident * page
    }

    /// Where a block begins.
    pub(crate) fn address(&self, id: BlockId) -> NonNull<u8> {
        debug_assert!((id as usize) < self.blocks);
        self.memory.at(id as usize * self.block_bytes)
    }

    /// Bytes promised and not taken yet, the most bytes held at any moment, and how many requests did
    /// not fit.
    pub(crate) fn figures(&self) -> (usize, usize, u64) {
        let ledger = self.lock();
        (
            ledger.promised() * self.block_bytes,
            ledger.peak() * self.block_bytes,
            ledger.refusals(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: the pool hands out disjoint blocks; a block is written by a cache that is alone with it, or
// by `own` before anyone knows it. The pool's own state is behind a mutex.
unsafe impl Send for BlockPool {}
// SAFETY: as above.
unsafe impl Sync for BlockPool {}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(ids: &[BlockId]) -> Vec<(BlockId, Held)> {
        ids.iter().map(|&id| (id, Held::Alone)).collect()
    }

    #[test]
    fn promises_are_kept_and_refused_exactly() {
        let pool = BlockPool::new(10 * 64 + 63, 64).unwrap();
        assert_eq!(pool.capacity(), 640);
        let (mut a, mut b, mut out) = (Account::default(), Account::default(), Vec::new());
        pool.reserve(&mut a, 6, &[]).unwrap();
        pool.take(&mut b, 4, &[], &mut out).unwrap();
        let refused = pool.take(&mut b, 1, &[], &mut Vec::new()).unwrap_err();
        assert_eq!(
            refused,
            Error::Budget {
                needed: 64,
                queries: 0,
                available: 0
            }
        );
        let mut mine = Vec::new();
        pool.take(&mut a, 6, &[], &mut mine).unwrap();
        assert_eq!(pool.used(), 640);
        pool.let_go(&mut a, &alone(&mine[..2]));
        // Still promised to `a`.
        assert!(pool.take(&mut b, 1, &[], &mut Vec::new()).is_err());
        pool.reserve(&mut a, 0, &[]).unwrap();
        pool.take(&mut b, 2, &[], &mut out).unwrap();
        let mut ids = [&out[..], &mine[2..]].concat();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10, "no block is held twice");
        pool.let_go(&mut a, &alone(&mine[2..]));
        pool.let_go(&mut b, &alone(&out));
        assert_eq!(pool.used(), 0);
    }
}
