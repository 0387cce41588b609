//! Random operations against a model that recounts everything from who holds what.

use std::collections::BTreeMap;

use reasoning_rpc_test_support::{Random, seed};

use super::*;

#[derive(Default)]
struct Holder {
    account: Account,
    /// With whether it is a writer.
    blocks: Vec<(BlockId, bool)>,
    /// What it was promised, by this model's own count.
    promise: usize,
}

/// Used blocks, promised blocks: counted anew.
fn recount(holders: &[Holder]) -> (usize, usize) {
    let mut blocks: BTreeMap<BlockId, (usize, usize)> = BTreeMap::new();
    for &(id, writer) in holders.iter().flat_map(|holder| &holder.blocks) {
        let block = blocks.entry(id).or_default();
        block.0 += 1;
        block.1 += usize::from(writer);
    }
    // Writers copy one after the other; one that finds itself alone does not.
    let copies = |&(holders, writers): &(usize, usize)| match writers {
        _ if writers == holders => writers - 1,
        _ => writers,
    };
    let promises: usize = holders.iter().map(|holder| holder.promise).sum();
    (
        blocks.len(),
        promises + blocks.values().map(copies).sum::<usize>(),
    )
}

/// Everybody calls in what was promised, in a random order: nothing may fail.
fn all_promises_are_kept(ledger: &Ledger, holders: &[Holder], size: usize, random: &mut Random) {
    let mut ledger = ledger.clone();
    let mut accounts: Vec<Account> = holders
        .iter()
        .map(|holder| Account {
            held: holder.account.held,
            reserved: holder.account.reserved,
        })
        .collect();
    // (holder, Some(block to write) or None to take one)
    let mut calls: Vec<(usize, Option<BlockId>)> = Vec::new();
    for (index, holder) in holders.iter().enumerate() {
        calls.extend((0..holder.promise).map(|_| (index, None)));
        let writes = holder.blocks.iter().filter(|(_, writer)| *writer);
        calls.extend(writes.map(|&(id, _)| (index, Some(id))));
    }
    let mut used = recount(holders).0;
    while !calls.is_empty() {
        let (index, write) = calls.swap_remove(random.below(calls.len()));
        match write {
            None => {
                let mut out = Vec::new();
                ledger.take(&mut accounts[index], 1, &[], &mut out).unwrap();
                assert!((out[0] as usize) < size);
                used += 1;
            }
            Some(id) => {
                if let Some(copy) = ledger.copy(id) {
                    assert!((copy as usize) < size);
                    used += 1;
                }
            }
        }
        assert!(used <= size);
        assert_eq!(ledger.used(), used);
    }
}

#[test]
fn random_operations_agree_with_a_recount_and_every_promise_is_kept() {
    let mut random = Random::new(seed());
    let (mut refused, mut forked, mut copied, mut claimed) = (0, 0, 0, 0);
    for _ in 0..200 {
        let size = 1 + random.below(24);
        let mut ledger = Ledger::new(size, 1);
        let mut holders: Vec<Holder> = vec![Holder::default()];
        for _ in 0..120 {
            let before = recount(&holders);
            assert_eq!((ledger.used(), ledger.promised()), before);
            assert!(before.0 + before.1 <= size);
            let available = size - before.0 - before.1;
            let mut check = |result: Result<()>, needed: usize| {
                refused += usize::from(result.is_err());
                match result {
                    Ok(()) => assert!(needed <= available, "needed {needed}, had {available}"),
                    Err(error) => assert_eq!(
                        error,
                        Error::Budget {
                            needed,
                            queries: 0,
                            available
                        }
                    ),
                }
                needed <= available
            };
            if holders.is_empty() {
                holders.push(Holder::default());
            }
            let index = random.below(holders.len());
            // What making a reader of this holder's a writer costs.
            let claim_cost = |holders: &mut [Holder], place: usize| {
                let before = recount(holders).1;
                holders[index].blocks[place].1 = true;
                let after = recount(holders).1;
                holders[index].blocks[place].1 = false;
                after - before
            };
            let readers: Vec<usize> = (0..holders[index].blocks.len())
                .filter(|&place| !holders[index].blocks[place].1)
                .collect();
            let place = match readers.len() {
                0 => None,
                len => Some(readers[random.below(len)]).filter(|_| random.below(2) == 0),
            };
            match random.below(7) {
                0 => {
                    let cost = place.map_or(0, |place| claim_cost(&mut holders, place));
                    let holder = &mut holders[index];
                    let claims: Vec<BlockId> = place.iter().map(|&place| holder.blocks[place].0).collect();
                    let blocks = random.below(size + 2);
                    let promise = blocks.saturating_sub(holder.blocks.len());
                    let needed = promise.saturating_sub(holder.promise) + cost;
                    let result = ledger.reserve(&mut holder.account, blocks, &claims);
                    if check(result, needed) {
                        holder.promise = promise;
                        place.into_iter().for_each(|place| holder.blocks[place].1 = true);
                        claimed += claims.len();
                    }
                }
                1 | 2 => {
                    let cost = place.map_or(0, |place| claim_cost(&mut holders, place));
                    let holder = &mut holders[index];
                    let claims: Vec<BlockId> = place.iter().map(|&place| holder.blocks[place].0).collect();
                    let count = random.below(5);
                    let needed = count.saturating_sub(holder.promise) + cost;
                    let mut out = Vec::new();
                    let result = ledger.take(&mut holder.account, count, &claims, &mut out);
                    if check(result, needed) {
                        holder.promise = holder.promise.saturating_sub(count);
                        place.into_iter().for_each(|place| holder.blocks[place].1 = true);
                        assert_eq!(out.len(), count);
                        holder.blocks.extend(out.iter().map(|&id| (id, true)));
                        claimed += claims.len();
                    } else {
                        assert!(out.is_empty());
                    }
                }
                3 => {
                    // A fork of the first blocks.
                    let count = random.below(holders[index].blocks.len() + 1);
                    let readers = random.below(count + 1);
                    let shares: Vec<Share> = holders[index].blocks[..count]
                        .iter()
                        .enumerate()
                        .map(|(place, &(id, was_writer))| Share {
                            id,
                            was_writer,
                            writers: place >= readers,
                        })
                        .collect();
                    let old = holders[index].blocks.clone();
                    let mut fork = Holder::default();
                    for share in &shares {
                        fork.blocks.push((share.id, share.writers));
                    }
                    holders[index].blocks[..count].copy_from_slice(&fork.blocks);
                    holders.push(fork);
                    let needed = recount(&holders).1.saturating_sub(before.1);
                    let mut account = Account::default();
                    let result = ledger.share(&mut account, &shares);
                    if check(result, needed) {
                        holders.last_mut().unwrap().account = account;
                        forked += 1;
                    } else {
                        holders.pop();
                        holders[index].blocks = old;
                    }
                }
                4 => {
                    // A write.
                    let writable: Vec<usize> = (0..holders[index].blocks.len())
                        .filter(|&place| holders[index].blocks[place].1)
                        .collect();
                    if !writable.is_empty() {
                        let place = writable[random.below(writable.len())];
                        let id = holders[index].blocks[place].0;
                        let shared = holders
                            .iter()
                            .flat_map(|holder| &holder.blocks)
                            .filter(|block| block.0 == id)
                            .count();
                        let copy = ledger.copy(id);
                        assert_eq!(copy.is_some(), shared > 1);
                        if let Some(copy) = copy {
                            let known = |block: &(BlockId, bool)| block.0 == copy;
                            assert!(!holders.iter().flat_map(|holder| &holder.blocks).any(known));
                            holders[index].blocks[place].0 = copy;
                            copied += 1;
                        }
                    }
                }
                5 => {
                    // A compaction lets go of the last blocks.
                    let holder = &mut holders[index];
                    let keep = random.below(holder.blocks.len() + 1);
                    let gone = holder.blocks.split_off(keep);
                    ledger.let_go(&mut holder.account, gone.iter().copied());
                    let after = recount(&holders);
                    let gained = before.0 + before.1 - after.0 - after.1;
                    let holder = &mut holders[index];
                    let wish = holder.account.reserved.saturating_sub(keep);
                    assert!(wish <= holder.promise + gained, "no more than what became free");
                    if gone.iter().all(|&(_, writer)| writer) {
                        assert_eq!(gained, gone.len(), "a writer's block always gives one back");
                    }
                    holder.promise = wish;
                }
                _ => {
                    let mut holder = holders.swap_remove(index);
                    ledger.reserve(&mut holder.account, 0, &[]).unwrap();
                    ledger.let_go(&mut holder.account, holder.blocks.iter().copied());
                }
            }
            if random.below(4) == 0 {
                all_promises_are_kept(&ledger, &holders, size, &mut random);
            }
        }
        for mut holder in holders {
            ledger.reserve(&mut holder.account, 0, &[]).unwrap();
            ledger.let_go(&mut holder.account, holder.blocks.iter().copied());
        }
        assert_eq!((ledger.used(), ledger.promised()), (0, 0));
    }
    eprintln!("{forked} forks, {copied} copies, {claimed} claims, {refused} refusals");
    assert!(forked > 100 && copied > 100 && claimed > 100 && refused > 100);
}
