//! What follows from a plan's kept sets, and whether a plan is one.

use crate::batch::{Batched, Blocks, Sequence};
use crate::compressor::Compressor;
use crate::error::{Error, Result, refuse};
use crate::types::{BlockCopy, Merge, Plan};
use crate::workspace::Carver;

/// What a compression does to block tables.
pub(crate) enum Effect {
    Copy(BlockCopy),
    Free(i32),
}

/// The sets of blocks of a batch, in scratch.
///
/// # Safety
/// The batch's block ids are readable.
pub(crate) unsafe fn blocks<'w>(batch: &Batched<'_>, scratch: &mut Carver<'w>) -> Result<Blocks<'w>> {
    let words = batch.block_count().div_ceil(64);
    let mut set = || scratch.filled(words, 0u64);
    let sets = [set()?, set()?, set()?, set()?];
    // SAFETY: the caller's contract.
    unsafe { Blocks::new(batch, sets) }
}

/// Goes through what lengths afterwards imply, in order, and checks that every block that will be written
/// is the sequence's own or is copied.
///
/// # Safety
/// The batch's block ids are readable.
pub(crate) unsafe fn effects(
    batch: &Batched<'_>,
    blocks: &Blocks<'_>,
    new_lengths: &[i32],
    mut take: impl FnMut(Effect) -> Result<()>,
) -> Result<()> {
    let spares = batch.batch.spare_blocks;
    let mut copies = 0;
    for (sequence, &new_length) in batch.sequences().zip(new_lengths) {
        let new_length = new_length as usize;
        if new_length == sequence.length {
            continue;
        }
        let end = batch.blocks(new_length);
        for index in sequence.prompt / batch.block_entries()..end {
            // SAFETY: the caller's contract; a sequence does not grow.
            let from = unsafe { batch.block(&sequence, index) };
            if batch.is_paged() && blocks.is_shared(from) {
                if let Some(&to) = spares.get(copies) {
                    take(Effect::Copy(BlockCopy {
                        sequence: sequence.index as u32,
                        index: index as u32,
                        from,
                        to,
                    }))?;
                    take(Effect::Free(from))?;
                }
                copies += 1;
            } else if blocks.is_twice(from) {
                return refuse(
                    format_args!("block (or row) {from}, which sequence {} writes", sequence.index),
                    "once in the batch, or among shared_blocks",
                    "twice or more",
                );
            }
        }
        if batch.is_paged() {
            for index in end..batch.blocks(sequence.length) {
                // SAFETY: the caller's contract.
                take(Effect::Free(unsafe { batch.block(&sequence, index) }))?;
            }
        }
    }
    if copies > spares.len() {
        return Err(Error::TooSmall {
            what: "spare blocks",
            needed: copies,
            found: spares.len(),
        });
    }
    Ok(())
}

/// The kept sets of the sequences of a plan whose counts were checked, one sequence after the other.
pub(crate) fn kept_sets<'a>(plan: &Plan<'a>) -> impl Iterator<Item = &'a [u32]> + use<'a> {
    by_sequence(plan, plan.kept)
}

/// What belongs to the kept sets of each sequence, of `items` that are one for each kept entry, or none at all.
pub(crate) fn by_sequence<'a, T>(
    plan: &Plan<'a>,
    items: &'a [T],
) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
    let sets = if items.is_empty() { 0 } else { plan.sets as usize };
    let mut rest = items;
    plan.kept_counts.iter().map(move |&count| {
        let (own, tail) = rest.split_at(sets * count as usize);
        rest = tail;
        own
    })
}

/// What belongs to a KV head's set of what belongs to those of its sequence.
pub(crate) fn set_of<T>(items: &[T], sets: u32, count: u32, kv_head: usize) -> &[T] {
    if items.is_empty() {
        return items;
    }
    let set = if sets == 1 { 0 } else { kv_head };
    &items[set * count as usize..][..count as usize]
}

/// Cuts off the items at the beginning that belong together.
pub(crate) fn cut<'a, T>(items: &mut &'a [T], belongs: impl Fn(&T) -> bool) -> &'a [T] {
    let count = items.iter().take_while(|item| belongs(item)).count();
    let (own, rest) = items.split_at(count);
    *items = rest;
    own
}

impl Compressor {
    /// Checks all of a plan but its effects.
    pub(crate) fn check(&self, plan: &Plan<'_>, batch: &Batched<'_>) -> Result<()> {
        for (what, found) in [
            ("plan: kept_counts", plan.kept_counts.len()),
            ("plan: new_lengths", plan.new_lengths.len()),
        ] {
            if found != batch.len() {
                return refuse(
                    what,
                    format_args!("one for each of {} sequences", batch.len()),
                    found,
                );
            }
        }
        let sets = plan.sets as usize;
        if sets != 1 && sets != self.kv_heads {
            return refuse("plan: sets", format_args!("1 or {}", self.kv_heads), sets);
        }
        let mut total = 0usize;
        for (sequence, (&count, &new_length)) in batch
            .sequences()
            .zip(plan.kept_counts.iter().zip(plan.new_lengths))
        {
            let index = sequence.index;
            if count as usize > sequence.candidates {
                return refuse(
                    format_args!("plan: kept_counts[{index}]"),
                    format_args!("at most {}, the candidates", sequence.candidates),
                    count,
                );
            }
            let expected = sequence.length - sequence.candidates + count as usize;
            if usize::try_from(new_length) != Ok(expected) {
                return refuse(format_args!("plan: new_lengths[{index}]"), expected, new_length);
            }
            total = total.saturating_add(sets.saturating_mul(count as usize));
        }
        if total != plan.kept.len() {
            return refuse("plan: kept", format_args!("{total} indices"), plan.kept.len());
        }
        let mut merges = plan.merges;
        for ((sequence, kept), &count) in batch.sequences().zip(kept_sets(plan)).zip(plan.kept_counts) {
            for set in kept.chunks_exact((count as usize).max(1)) {
                let index = sequence.index;
                if let Some(pair) = set.windows(2).find(|pair| pair[0] >= pair[1]) {
                    return refuse(
                        format_args!("plan: kept set of sequence {index}"),
                        "strictly ascending indices",
                        format_args!("{} before {}", pair[0], pair[1]),
                    );
                }
                if let Some(&last) = set.last().filter(|&&last| last as usize >= sequence.candidates) {
                    return refuse(
                        format_args!("plan: kept set of sequence {index}"),
                        format_args!("indices below {}, its candidates", sequence.candidates),
                        last,
                    );
                }
            }
            let of = merges
                .iter()
                .take_while(|merge| merge.sequence as usize == sequence.index)
                .count();
            let (own, rest) = merges.split_at(of);
            merges = rest;
            self.check_merges(own, &sequence, |kv_head| set_of(kept, plan.sets, count, kv_head))?;
        }
        if let Some(merge) = merges.first() {
            return refuse(
                "plan: merges",
                "ascending sequences of the batch",
                format_args!("sequence {}", merge.sequence),
            );
        }
        self.check_changes(plan)
    }

    /// Checks what becomes of histories and keys, once the kept sets and the merges were.
    fn check_changes(&self, plan: &Plan<'_>) -> Result<()> {
        let shifts = if self.merges() { plan.key_shifts.len() } else { 0 };
        let directions = match shifts {
            0 => 0,
            _ => plan.kept_counts.len() * self.kv_heads * self.head_dim,
        };
        for (what, expected, numbers) in [
            (
                "plan: history",
                if self.keeps_history() { plan.kept.len() } else { 0 },
                plan.history,
            ),
            (
                "plan: key_shifts",
                if shifts > 0 { plan.kept.len() } else { 0 },
                plan.key_shifts,
            ),
            ("plan: key_directions", directions, plan.key_directions),
        ] {
            if numbers.len() != expected {
                return refuse(what, format_args!("{expected} floats"), numbers.len());
            }
            if let Some(x) = numbers.iter().find(|x| !x.is_finite()) {
                return refuse(what, "finite numbers", x);
            }
        }
        // What is shifted is what is merged into.
        let mut merges = plan.merges;
        let sequences = kept_sets(plan)
            .zip(by_sequence(plan, plan.key_shifts))
            .zip(plan.kept_counts);
        for (index, ((kept, shifts), &count)) in sequences.enumerate().filter(|_| shifts > 0) {
            for kv_head in 0..self.kv_heads {
                let own = cut(&mut merges, |merge: &Merge| {
                    (merge.sequence as usize, merge.kv_head as usize) == (index, kv_head)
                });
                let (set, shifts) = (
                    set_of(kept, plan.sets, count, kv_head),
                    set_of(shifts, plan.sets, count, kv_head),
                );
                let shifted = set.iter().zip(shifts).filter(|(_, shift)| **shift != 0.0);
                for (&kept, shift) in shifted {
                    if own.binary_search_by_key(&kept, |merge| merge.into).is_err() {
                        return refuse(
                            format_args!("plan: key_shifts of sequence {index}"),
                            format_args!("0 for candidate {kept}, which nothing is merged into"),
                            shift,
                        );
                    }
                }
            }
        }
        Ok(())
    }

    fn check_merges<'k>(
        &self,
        merges: &[Merge],
        sequence: &Sequence,
        kept: impl Fn(usize) -> &'k [u32],
    ) -> Result<()> {
        let of = sequence.index;
        let most = self.most_merges(sequence.candidates);
        if merges.len() > most {
            return refuse(
                format_args!("plan: merges of sequence {of}"),
                format_args!("at most {most}"),
                merges.len(),
            );
        }
        let mut previous = None;
        for merge in merges {
            let expected = if merge.kv_head as usize >= self.kv_heads {
                "a KV head of the compressor"
            } else if merge.from as usize >= sequence.candidates {
                "a candidate as from"
            } else if !merge.key_weight.is_finite() || !merge.value_weight.is_finite() {
                "finite weights"
            } else if kept(merge.kv_head as usize).binary_search(&merge.into).is_err() {
                "an into that is kept"
            } else if kept(merge.kv_head as usize).binary_search(&merge.from).is_ok() {
                "a from that is dropped"
            } else if previous >= Some((merge.kv_head, merge.into, merge.from)) {
                "strictly ascending kv_head, into, from"
            } else {
                previous = Some((merge.kv_head, merge.into, merge.from));
                continue;
            };
            return refuse(
                format_args!("plan: merge of sequence {of}"),
                expected,
                format_args!("{merge:?}"),
            );
        }
        Ok(())
    }
}
