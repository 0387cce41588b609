//! A batch, checked: lengths, rows, blocks.

use crate::error::{Result, refuse};
use crate::types::{Batch, BlockTable};

/// Sequences that a batch has at most.
const MAX_SEQUENCES: usize = 65_536;

/// One sequence of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Sequence {
    pub index: usize,
    pub length: usize,
    pub prompt: usize,
    pub candidates: usize,
    pub done: usize,
    pub row: usize,
}

/// A batch whose numbers were checked; its block ids were not.
#[derive(Clone, Copy)]
pub(crate) struct Batched<'a> {
    pub batch: Batch<'a>,
    window: usize,
}

/// `found`, from 0 up to `most`.
fn number(what: &str, index: usize, most: usize, found: i32) -> Result<usize> {
    match usize::try_from(found) {
        Ok(number) if number <= most => Ok(number),
        _ => refuse(
            format_args!("{what} of sequence {index}"),
            format_args!("0 to {most}"),
            found,
        ),
    }
}

impl<'a> Batched<'a> {
    /// Checks all that needs no look at the block table.
    pub(crate) fn new(batch: &Batch<'a>, window: usize) -> Result<Self> {
        let count = batch.lengths.len();
        if count > MAX_SEQUENCES {
            return refuse("sequences", format_args!("at most {MAX_SEQUENCES}"), count);
        }
        for (what, found) in [
            ("prompt_lengths", Some(batch.prompt_lengths.len())),
            ("compressions", Some(batch.compressions.len())),
            ("rows", batch.rows.map(<[i32]>::len)),
        ] {
            if let Some(found) = found.filter(|&found| found != count) {
                return refuse(what, format_args!("one for each of {count} sequences"), found);
            }
        }
        if batch.block_entries == 0 || batch.block_entries > i32::MAX as u32 {
            return refuse("block_entries", "1 to 2147483647", batch.block_entries);
        }
        for (what, found) in [("block_count", batch.block_count), ("row_count", batch.row_count)] {
            if found > i32::MAX as u32 {
                return refuse(what, "at most 2147483647", found);
            }
        }
        let entries = batch.block_entries as usize;
        let capacity = match batch.block_table {
            None => {
                for (what, found) in [
                    ("block_count", batch.block_count as usize),
                    ("shared_blocks", batch.shared_blocks.len()),
                    ("spare_blocks", batch.spare_blocks.len()),
                ] {
                    if found != 0 {
                        return refuse(format_args!("{what} of dense tensors"), 0, found);
                    }
                }
                entries
            }
            Some(table) => {
                if table.ids.is_null() || !table.ids.is_aligned() {
                    return refuse(
                        "block_table",
                        "the address of 32-bit ids",
                        format_args!("{:?}", table.ids),
                    );
                }
                let most = i32::MAX as usize;
                match usize::try_from(table.stride) {
                    _ if batch.row_count <= 1 => most,
                    Ok(stride) if stride <= isize::MAX as usize / 4 / batch.row_count as usize => {
                        stride.saturating_mul(entries).min(most)
                    }
                    _ => {
                        let fits = "0 or more ids, all rows within the address space";
                        return refuse("block_table_stride", fits, table.stride);
                    }
                }
            }
        };
        let this = Self {
            batch: *batch,
            window,
        };
        for index in 0..count {
            let length = number("length", index, capacity, batch.lengths[index])?;
            number("prompt_length", index, length, batch.prompt_lengths[index])?;
            number(
                "compressions",
                index,
                i32::MAX as usize,
                batch.compressions[index],
            )?;
            let row = batch.rows.map_or(index as i32, |rows| rows[index]);
            if batch.row_count == 0 {
                return refuse("row_count", "at least 1", 0);
            }
            number("row", index, batch.row_count as usize - 1, row)?;
        }
        Ok(this)
    }

    pub(crate) fn len(&self) -> usize {
        self.batch.lengths.len()
    }

    /// The `index`th sequence, below `len`.
    pub(crate) fn sequence(&self, index: usize) -> Sequence {
        // All were seen to be in range, so none changes sign.
        let (length, prompt) = (
            self.batch.lengths[index] as usize,
            self.batch.prompt_lengths[index] as usize,
        );
        Sequence {
            index,
            length,
            prompt,
            candidates: (length - prompt).saturating_sub(self.window),
            done: self.batch.compressions[index] as usize,
            row: self.batch.rows.map_or(index, |rows| rows[index] as usize),
        }
    }

    pub(crate) fn sequences(&self) -> impl Iterator<Item = Sequence> + '_ {
        (0..self.len()).map(|index| self.sequence(index))
    }

    /// Floats of the scores of a layer.
    pub(crate) fn score_count(&self, kv_heads: usize) -> usize {
        let candidates: usize = self.sequences().map(|sequence| sequence.candidates).sum();
        candidates.saturating_mul(kv_heads)
    }

    pub(crate) fn is_paged(&self) -> bool {
        self.batch.block_table.is_some()
    }

    /// Blocks of the tensors; dense: rows, each of which is a block.
    pub(crate) fn block_count(&self) -> usize {
        match self.is_paged() {
            true => self.batch.block_count as usize,
            false => self.batch.row_count as usize,
        }
    }

    pub(crate) fn block_entries(&self) -> usize {
        self.batch.block_entries as usize
    }

    /// Blocks that so many entries take.
    pub(crate) fn blocks(&self, entries: usize) -> usize {
        entries.div_ceil(self.block_entries())
    }

    /// Id of the `index`th block of a sequence, as the host's table has it.
    ///
    /// # Safety
    /// `index` is below the blocks of its length, and those ids are readable.
    pub(crate) unsafe fn block(&self, sequence: &Sequence, index: usize) -> i32 {
        match self.batch.block_table {
            None => sequence.row as i32,
            Some(BlockTable { ids, stride }) => {
                // A single row has no stride.
                let start = if sequence.row == 0 {
                    0
                } else {
                    sequence.row * stride as usize
                };
                // SAFETY: the caller's contract; `new` has checked row and stride.
                unsafe { *ids.add(start + index) }
            }
        }
    }

    /// Checks that every block id of a valid entry is below the number of blocks.
    ///
    /// # Safety
    /// The ids of every sequence's valid entries are readable.
    pub(crate) unsafe fn check_ids(&self) -> Result<()> {
        for sequence in self.sequences() {
            for index in 0..self.blocks(sequence.length) {
                // SAFETY: the caller's contract.
                let id = unsafe { self.block(&sequence, index) };
                self.check_id(format_args!("block {index} of sequence {}", sequence.index), id)?;
            }
        }
        Ok(())
    }

    fn check_id(&self, what: impl std::fmt::Display, id: i32) -> Result<usize> {
        match usize::try_from(id) {
            Ok(block) if block < self.block_count() => Ok(block),
            _ => refuse(
                what,
                format_args!("an id from 0 to below {}", self.block_count()),
                id,
            ),
        }
    }
}

/// Sets of blocks.
pub(crate) struct Blocks<'w> {
    twice: &'w [u64],
    shared: &'w [u64],
}

fn has(bits: &[u64], block: usize) -> bool {
    bits[block / 64] >> (block % 64) & 1 == 1
}

fn set(bits: &mut [u64], block: usize) {
    bits[block / 64] |= 1 << (block % 64);
}

impl<'w> Blocks<'w> {
    /// Checks every id of the batch and remembers who uses which block. The four sets have a bit for each
    /// block, all 0.
    ///
    /// # Safety
    /// As [`Batched::check_ids`].
    pub(crate) unsafe fn new(batch: &Batched<'_>, sets: [&'w mut [u64]; 4]) -> Result<Self> {
        let [seen, twice, shared, spare] = sets;
        // SAFETY: the caller's contract.
        unsafe { batch.check_ids()? };
        for sequence in batch.sequences() {
            for index in 0..batch.blocks(sequence.length) {
                // SAFETY: the caller's contract.
                let id = unsafe { batch.block(&sequence, index) };
                let block = batch.check_id("block", id)?;
                if has(seen, block) {
                    set(twice, block);
                }
                set(seen, block);
            }
        }
        for (index, &id) in batch.batch.shared_blocks.iter().enumerate() {
            set(
                shared,
                batch.check_id(format_args!("shared_blocks[{index}]"), id)?,
            );
        }
        for (index, &id) in batch.batch.spare_blocks.iter().enumerate() {
            let block = batch.check_id(format_args!("spare_blocks[{index}]"), id)?;
            let found = if has(spare, block) {
                "one that is named twice"
            } else if has(seen, block) {
                "one that a sequence uses"
            } else if has(shared, block) {
                "a shared one"
            } else {
                set(spare, block);
                continue;
            };
            return refuse(
                format_args!("spare_blocks[{index}]"),
                "a free block",
                format_args!("{found}, {id}"),
            );
        }
        Ok(Self { twice, shared })
    }

    pub(crate) fn is_shared(&self, id: i32) -> bool {
        has(self.shared, id as usize)
    }

    /// Whether a block occurs more than once in the valid part of the batch.
    pub(crate) fn is_twice(&self, id: i32) -> bool {
        has(self.twice, id as usize)
    }
}
