//! The pool under shuttle: threads in every order that a random scheduler finds. `make test-shuttle`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::shuttle::rand::{self, RngCore as _};
use ::shuttle::scheduler::RandomScheduler;
use ::shuttle::sync::Mutex;
use ::shuttle::{Config, Runner, thread};
use reasoning_rpc_test_support::{Random, seed};

use super::ledger::{Account, BlockId, Ledger};
use super::pool::{BlockPool, Held, Hold};

const BLOCK: usize = 64;

/// In all orders together.
static COPIES: AtomicUsize = AtomicUsize::new(0);
static REFUSALS: AtomicUsize = AtomicUsize::new(0);

/// What a cache is to the pool: blocks, how they are held, and what must be in them.
#[derive(Default)]
struct Holder {
    account: Account,
    blocks: Vec<BlockId>,
    holds: Vec<Hold>,
    stamps: Vec<u64>,
    /// Blocks that it may take without asking.
    promise: usize,
}

impl Holder {
    fn take(&mut self, pool: &BlockPool, count: usize, stamp: u64) -> bool {
        let mut taken = Vec::new();
        if pool.take(&mut self.account, count, &[], &mut taken).is_err() {
            assert!(count > self.promise, "a promise was broken");
            REFUSALS.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.promise = self.promise.saturating_sub(count);
        for id in taken {
            self.blocks.push(id);
            self.holds.push(Hold::new(Held::Alone));
            self.stamps.push(stamp);
            write(pool, id, stamp);
        }
        true
    }

    fn reserve(&mut self, pool: &BlockPool, blocks: usize) {
        if pool.reserve(&mut self.account, blocks, &[]).is_ok() {
            self.promise = blocks.saturating_sub(self.blocks.len());
        }
    }

    fn fork(&self, pool: &BlockPool, readers: usize) -> Option<Self> {
        let held = |place| {
            if place < readers {
                Held::Reader
            } else {
                Held::Writer
            }
        };
        let blocks: Vec<_> = self
            .blocks
            .iter()
            .enumerate()
            .map(|(place, &id)| (id, &self.holds[place], held(place)))
            .collect();
        let mut fork = Self::default();
        pool.share(&mut fork.account, &blocks).ok()?;
        fork.blocks = self.blocks.clone();
        fork.holds = (0..self.blocks.len())
            .map(|place| Hold::new(held(place)))
            .collect();
        fork.stamps = self.stamps.clone();
        Some(fork)
    }

    /// Writes a block that it may write: that never fails.
    fn write(&mut self, pool: &BlockPool, place: usize, stamp: u64) {
        if self.holds[place].get() == Held::Reader {
            let claim = [self.blocks[place]];
            if pool.take(&mut self.account, 0, &claim, &mut Vec::new()).is_err() {
                return;
            }
        }
        let id = pool.own(self.blocks[place]);
        assert_eq!(read(pool, id), self.stamps[place], "a copy of what was there");
        COPIES.fetch_add(usize::from(id != self.blocks[place]), Ordering::Relaxed);
        self.blocks[place] = id;
        self.holds[place].set(Held::Alone);
        write(pool, id, stamp);
        self.stamps[place] = stamp;
        thread::yield_now();
    }

    fn let_go(&mut self, pool: &BlockPool, keep: usize) {
        // What falls back to the promise is the ledger's to say; this holder counts on nothing.
        self.promise = 0;
        let holds: Vec<Held> = self.holds.drain(keep..).map(|hold| hold.get()).collect();
        let gone: Vec<(BlockId, Held)> = self.blocks.drain(keep..).zip(holds).collect();
        self.stamps.truncate(keep);
        pool.let_go(&mut self.account, &gone);
    }

    fn check(&self, pool: &BlockPool) {
        for (&id, &stamp) in self.blocks.iter().zip(&self.stamps) {
            assert_eq!(read(pool, id), stamp, "nobody else writes here");
        }
    }

    fn free(mut self, pool: &BlockPool) {
        self.check(pool);
        pool.reserve(&mut self.account, 0, &[]).unwrap();
        self.let_go(pool, 0);
    }
}

fn address(pool: &BlockPool, id: BlockId) -> *mut u64 {
    assert!(
        ((id as usize) + 1) * BLOCK <= pool.capacity(),
        "a block of the pool"
    );
    pool.address(id).as_ptr().cast()
}

fn read(pool: &BlockPool, id: BlockId) -> u64 {
    // SAFETY: a block of the pool is 64 aligned bytes, and of shuttle's threads one runs at a time.
    unsafe { address(pool, id).read() }
}

fn write(pool: &BlockPool, id: BlockId, stamp: u64) {
    // SAFETY: as above.
    unsafe { address(pool, id).write(stamp) };
}

fn random_operations() {
    let mut random = Random::new(rand::thread_rng().next_u64());
    let size = 4 + random.below(12);
    let pool = Arc::new(BlockPool::new(size * BLOCK, BLOCK).unwrap());
    let mut first = Holder::default();
    assert!(first.take(&pool, 1 + random.below(3), random.bits()));
    let readers = random.below(3);
    let mut threads = Vec::new();
    for _ in 0..3 {
        let holder = first.fork(&pool, readers).unwrap_or_default();
        let (pool, mut random) = (Arc::clone(&pool), Random::new(random.bits()));
        threads.push(thread::spawn(move || {
            let mut mine = vec![holder];
            for _ in 0..8 {
                let few = mine.len() < 3;
                let index = random.below(mine.len());
                let holder = &mut mine[index];
                match random.below(6) {
                    0 => holder.reserve(&pool, random.below(size)),
                    1 => {
                        let count = 1 + random.below(2);
                        holder.take(&pool, count, random.bits());
                    }
                    2 | 3 if !holder.blocks.is_empty() => {
                        let place = random.below(holder.blocks.len());
                        holder.write(&pool, place, random.bits());
                    }
                    4 if few => {
                        let readers = random.below(3);
                        let fork = holder.fork(&pool, readers);
                        mine.extend(fork);
                    }
                    _ => {
                        let keep = random.below(holder.blocks.len() + 1);
                        holder.let_go(&pool, keep);
                    }
                }
                let (used, promised) = pool.counts();
                assert!(
                    used + promised <= size,
                    "{used} used, {promised} promised of {size}"
                );
                mine.iter().for_each(|holder| holder.check(&pool));
            }
            mine.into_iter().for_each(|holder| holder.free(&pool));
        }));
    }
    // The blocks that all began with are written and freed beside them.
    first.write(&pool, 0, random.bits());
    first.free(&pool);
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(pool.counts(), (0, 0), "all blocks came back");
}

/// Runs `test` in 10,000 orders. All that is random in it follows from the seed.
fn in_many_orders(test: impl Fn() + Send + Sync + 'static) {
    let scheduler = RandomScheduler::new_from_seed(seed(), 10_000);
    Runner::new(scheduler, Config::default()).run(test);
}

#[test]
fn shuttle_finds_no_order_that_breaks_a_promise_or_writes_a_shared_block() {
    in_many_orders(random_operations);
    let (copies, refusals) = (COPIES.load(Ordering::Relaxed), REFUSALS.load(Ordering::Relaxed));
    eprintln!("{copies} copies, {refusals} refusals");
    assert!(copies > 1000 && refusals > 1000);
}

/// One step, a check and the taking that it was for, under two locks: what the ledger must not be.
fn checks_first_and_takes_later() {
    let ledger = Arc::new(Mutex::new(Ledger::new(2, 1)));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let ledger = Arc::clone(&ledger);
            thread::spawn(move || {
                let mut account = Account::default();
                let used = ledger.lock().unwrap().used();
                if used < 2 {
                    let taken = ledger.lock().unwrap().take(&mut account, 1, &[], &mut Vec::new());
                    assert!(taken.is_ok(), "there was room a moment ago");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
#[should_panic(expected = "there was room a moment ago")]
fn shuttle_finds_a_ledger_that_checks_and_takes_under_two_locks() {
    in_many_orders(checks_first_and_takes_later);
}

/// A write that looks whether the block is shared, lets the lock go and writes in place.
fn looks_first_and_writes_later() {
    let pool = Arc::new(BlockPool::new(4 * BLOCK, BLOCK).unwrap());
    let mut holder = Holder::default();
    assert!(holder.take(&pool, 1, 7));
    let fork = holder.fork(&pool, 0).unwrap();
    let threads: Vec<_> = [holder, fork]
        .into_iter()
        .map(|mut holder| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                let id = holder.blocks[0];
                if pool.is_shared(id) {
                    // The copy is begun, and the share given up before it is made.
                    holder.let_go(&pool, 0);
                    assert!(holder.take(&pool, 1, 0));
                    thread::yield_now();
                    let copied = read(&pool, id);
                    assert_eq!(copied, 7, "a copy of what was there");
                } else {
                    write(&pool, id, 8);
                    thread::yield_now();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
#[should_panic(expected = "a copy of what was there")]
fn shuttle_finds_a_copy_that_is_made_after_the_share_is_given_up() {
    in_many_orders(looks_first_and_writes_later);
}
