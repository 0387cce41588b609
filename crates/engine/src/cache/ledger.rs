//! Who holds which block and what was promised to whom: the pool's accounts, without its memory.
//!
//! Blocks are shared and never written while they are. So of the holders of a shared block, those
//! that may still have to write it (its *writers*; the others are *readers*) will each need a copy,
//! but the last one to be alone with it. That many copies are promised, block by block:
//! min(writers, holders - 1). Whoever copies uses up one of them, whoever lets go gives one back.
//!
//! What holds after every call: used blocks, promises to accounts and promised copies together are
//! never more than the pool has, so every promise can be kept.

use crate::error::{Error, Result};

/// A block's index in its pool.
pub(crate) type BlockId = u32;

/// What one sequence holds of a pool and what it was promised, in blocks. A shared block counts in
/// the account of each of its holders.
#[derive(Debug, Default)]
pub(crate) struct Account {
    held: usize,
    reserved: usize,
}

impl Account {
    /// Blocks promised and not taken yet.
    pub(crate) fn promise(&self) -> usize {
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

/// One block that a holder shares with a new one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub id: BlockId,
    /// The holder is a writer until now.
    pub was_writer: bool,
    /// From now on both are writers; or both are readers.
    pub writers: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    holders: usize,
    writers: usize,
}

impl Block {
    /// Copies that its holders may still need.
    fn copies(self) -> usize {
        self.writers.min(self.holders.saturating_sub(1))
    }
}

/// The accounts of a pool.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    size: usize,
    block_bytes: usize,
    /// All blocks that were ever handed out.
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    used: usize,
    /// Promised to accounts and not taken yet.
    promised: usize,
    /// Promised copies of shared blocks.
    copies: usize,
    /// The most blocks used at any moment.
    peak: usize,
    /// Requests that did not fit.
    refusals: u64,
}

impl Ledger {
    /// A pool of `size` blocks of `block_bytes` each.
    pub(crate) fn new(size: usize, block_bytes: usize) -> Self {
        Self {
            size,
            block_bytes,
            blocks: Vec::new(),
            free: Vec::new(),
            used: 0,
            promised: 0,
            copies: 0,
            peak: 0,
            refusals: 0,
        }
    }

    /// Blocks that someone holds, each counted once.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// The most that were used at any moment.
    pub(crate) fn peak(&self) -> usize {
        self.peak
    }

    /// Requests that were refused.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Blocks promised and not used yet: to accounts, and as copies.
    pub(crate) fn promised(&self) -> usize {
        self.promised + self.copies
    }

    /// Those promised to accounts.
    pub(crate) fn promised_to_accounts(&self) -> usize {
        self.promised
    }

    /// Whether [`reserve`](Self::reserve) would succeed.
    pub(crate) fn fits(&self, account: &Account, blocks: usize, claims: &[BlockId]) -> bool {
        let more = blocks
            .saturating_sub(account.held)
            .saturating_sub(account.promise());
        more + self.cost_of(claims) <= self.available()
    }

    /// The blocks that nobody holds and that somebody did, in no order.
    pub(crate) fn free(&self) -> &[BlockId] {
        &self.free
    }

    /// Blocks that were ever handed out: those with the lowest ids.
    pub(crate) fn touched(&self) -> usize {
        self.blocks.len()
    }

    /// Whether more than one holds a block.
    pub(crate) fn is_shared(&self, id: BlockId) -> bool {
        self.blocks[id as usize].holders > 1
    }

    /// Promises an account `blocks` in all, what it holds included, and makes it a writer of
    /// `claims`, of which it is a reader. A smaller promise than before gives the difference back.
    pub(crate) fn reserve(&mut self, account: &mut Account, blocks: usize, claims: &[BlockId]) -> Result<()> {
        let before = account.promise();
        let after = blocks.saturating_sub(account.held);
        self.check_available(after.saturating_sub(before) + self.cost_of(claims))?;
        self.claim(claims);
        self.promised = self.promised - before + after;
        account.reserved = blocks;
        // What is promised is handed out without an allocation.
        let most = self.used + self.promised + self.copies;
        self.blocks.reserve(most.saturating_sub(self.blocks.len()));
        Ok(())
    }

    /// Takes `count` blocks, appends their ids to `out` and makes the account a writer of `claims`.
    /// Does nothing if there are not enough.
    pub(crate) fn take(
        &mut self,
        account: &mut Account,
        count: usize,
        claims: &[BlockId],
        out: &mut Vec<BlockId>,
    ) -> Result<()> {
        let promised = count.min(account.promise());
        self.check_available(count - promised + self.cost_of(claims))?;
        self.claim(claims);
        self.promised -= promised;
        account.held += count;
        out.extend((0..count).map(|_| self.hand_out()));
        Ok(())
    }

    /// Makes a block that a writer is about to write its own: `None` if it is already, or the block
    /// that takes its place and that its contents are to be copied to, under the same lock.
    pub(crate) fn copy(&mut self, id: BlockId) -> Option<BlockId> {
        if !self.is_shared(id) {
            return None;
        }
        self.change(id, |block| {
            block.holders -= 1;
            block.writers -= 1;
        });
        // The promised copy is this one.
        Some(self.hand_out())
    }

    /// Gives each of these blocks of one holder a second holder. Does nothing if the copies cannot
    /// be promised.
    pub(crate) fn share(&mut self, account: &mut Account, shares: &[Share]) -> Result<()> {
        let shared = |block: Block, share: &Share| Block {
            holders: block.holders + 1,
            writers: block.writers - usize::from(share.was_writer) + 2 * usize::from(share.writers),
        };
        let (mut before, mut after) = (0, 0);
        for share in shares {
            let block = self.blocks[share.id as usize];
            before += block.copies();
            after += shared(block, share).copies();
        }
        self.check_available(after.saturating_sub(before))?;
        for share in shares {
            self.change(share.id, |block| *block = shared(*block, share));
        }
        account.held += shares.len();
        Ok(())
    }

    /// Lets go of blocks, each with whether the account was a writer of it. What frees a block or a
    /// promised copy falls back to the account's promise; what another keeps does not.
    pub(crate) fn let_go(
        &mut self,
        account: &mut Account,
        blocks: impl ExactSizeIterator<Item = (BlockId, bool)>,
    ) {
        let before = account.promise();
        let taken = self.used + self.copies;
        account.held -= blocks.len();
        for (id, writer) in blocks {
            self.change(id, |block| {
                block.holders -= 1;
                block.writers -= usize::from(writer);
            });
        }
        let gained = taken - (self.used + self.copies);
        let excess = (account.promise() - before).saturating_sub(gained);
        account.reserved -= excess;
        self.promised = self.promised - before + account.promise();
    }

    fn hand_out(&mut self) -> BlockId {
        let one = Block {
            holders: 1,
            writers: 1,
        };
        self.used += 1;
        self.peak = self.peak.max(self.used);
        // What was freed last is warm in the caches.
        match self.free.pop() {
            Some(id) => {
                self.blocks[id as usize] = one;
                id
            }
            None => {
                self.blocks.push(one);
                (self.blocks.len() - 1) as BlockId
            }
        }
    }

    fn change(&mut self, id: BlockId, change: impl FnOnce(&mut Block)) {
        let block = &mut self.blocks[id as usize];
        let before = block.copies();
        change(block);
        self.copies = self.copies - before + block.copies();
        if block.holders == 0 {
            self.used -= 1;
            self.free.push(id);
        }
    }

    fn claim(&mut self, claims: &[BlockId]) {
        for &id in claims {
            self.change(id, |block| block.writers += 1);
        }
    }

    /// Copies that have to be promised when a reader becomes a writer of each of these.
    fn cost_of(&self, claims: &[BlockId]) -> usize {
        let cost = |&id: &BlockId| {
            let block = self.blocks[id as usize];
            let writers = block.writers + 1;
            Block { writers, ..block }.copies() - block.copies()
        };
        claims.iter().map(cost).sum()
    }

    /// Blocks that are free and promised to nobody.
    fn available(&self) -> usize {
        self.size - self.used - self.promised - self.copies
    }

    fn check_available(&mut self, blocks: usize) -> Result<()> {
        let available = self.available();
        if blocks > available {
            self.refusals += 1;
            return Err(Error::Budget {
                needed: blocks * self.block_bytes,
                queries: 0,
                available: available * self.block_bytes,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
