use crate::element::Stored;
use crate::error::{Error, at_least, exactly, plus, times};
use crate::pages::{Column, KvPages, KvPagesMut, Tables};

/// One entry whose key and value go into another's. Indices are of entries, before anything moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merge {
    /// The entry whose key and value are added; it does not change.
    pub from: u32,
    /// The entry that they are added to.
    pub into: u32,
    /// Weight of `from`'s key.
    pub key_weight: f32,
    /// Weight of `from`'s value.
    pub value_weight: f32,
}

/// What becomes of the entries that others are merged into: `(1 - sum of w) x(into) + sum of w x(from)`, for keys with `key_weight` and
/// for values with `value_weight`, one row of `2 * head_dim` numbers (key, then value) in `rows` per distinct `into`, in their order.
/// Returns how many rows that is. The cache stays as it is: [`write_rows`] writes them, after [`compact`](crate::compact()).
///
/// `merges` ascend by `(into, from)`. Arithmetic is in `f32` in that order, each product and sum rounded, so the bits do not depend on
/// the instruction set.
///
/// # Errors
/// When an entry is beyond the valid ones or goes into itself, the order is wrong, or `rows` has no room.
pub fn merged_rows<E: Stored>(
    pages: &KvPages<'_, E>,
    merges: impl Iterator<Item = Merge> + Clone,
    rows: &mut [f32],
) -> Result<usize, Error> {
    let head_dim = pages.layout().head_dim;
    let mut count = 0;
    let mut previous: Option<Merge> = None;
    for (index, merge) in merges.clone().enumerate() {
        let Merge { from, into, .. } = merge;
        if from == into {
            return Err(Error::MergeIntoItself { index, entry: into });
        }
        valid(from, pages.len())?;
        valid(into, pages.len())?;
        if previous.is_some_and(|before| (before.into, before.from) >= (into, from)) {
            return Err(Error::MergeOrder { index, into, from });
        }
        count += usize::from(previous.is_none_or(|before| before.into != into));
        previous = Some(merge);
    }
    let what = "floats of merged rows";
    at_least(what, times(what, count, 2 * head_dim)?, rows.len())?;

    let tables = pages.tables();
    let mut rows = rows.chunks_exact_mut(2 * head_dim).take(count);
    let mut left = merges;
    while let (Some(Merge { into, .. }), Some(row)) = (left.clone().next(), rows.next()) {
        let group = left.clone().take_while(|merge| merge.into == into);
        let (keys, values) = group.clone().fold((0.0, 0.0), |(keys, values), merge| {
            (keys + merge.key_weight, values + merge.value_weight)
        });
        let (key, value) = row.split_at_mut(head_dim);
        // Entries are checked once more where they are read: safe code could give others in the second pass.
        let entry = valid(into, pages.len())?;
        // SAFETY: a valid entry.
        unsafe {
            read(tables, Part::Key, entry, |d, x| key[d] = (1.0 - keys) * x);
            read(tables, Part::Value, entry, |d, x| value[d] = (1.0 - values) * x);
        }
        for merge in group {
            left.next();
            let entry = valid(merge.from, pages.len())?;
            // SAFETY: a valid entry.
            unsafe {
                read(tables, Part::Key, entry, |d, x| key[d] += merge.key_weight * x);
                read(tables, Part::Value, entry, |d, x| {
                    value[d] += merge.value_weight * x
                });
            }
        }
    }
    Ok(count)
}

/// The key of an entry, as `f32`.
///
/// # Errors
/// When the entry is beyond the valid ones, or `key` is not `head_dim` long.
pub fn read_key<E: Stored>(pages: &KvPages<'_, E>, entry: usize, key: &mut [f32]) -> Result<(), Error> {
    let tables = pages.tables();
    exactly("elements of a key", pages.layout().head_dim, key.len())?;
    at_least("valid entries", plus("entry", entry, 1)?, pages.len())?;
    // SAFETY: a valid entry.
    unsafe { read(tables, Part::Key, entry, |d, x| key[d] = x) };
    Ok(())
}

/// The value of an entry, as `f32`.
///
/// # Errors
/// When the entry is beyond the valid ones, or `value` is not `head_dim` long.
pub fn read_value<E: Stored>(pages: &KvPages<'_, E>, entry: usize, value: &mut [f32]) -> Result<(), Error> {
    let tables = pages.tables();
    exactly("elements of a value", pages.layout().head_dim, value.len())?;
    at_least("valid entries", plus("entry", entry, 1)?, pages.len())?;
    // SAFETY: a valid entry.
    unsafe { read(tables, Part::Value, entry, |d, x| value[d] = x) };
    Ok(())
}

/// Writes rows of `2 * head_dim` numbers (key, then value) to `entries`, which ascend and are valid, each number rounded once as
/// [`Element::from_f32`](crate::Element::from_f32) does.
///
/// In `i8`, a key's (and a value's) scale becomes its largest magnitude / 127, and the numbers are divided by it and rounded to the
/// nearest, ties to even. If all are 0, so is the scale. A row with an infinity or NaN has no such scale: it becomes NaN as a whole.
///
/// # Errors
/// When `rows` is not one row per entry, or entries do not ascend strictly or are beyond the valid ones.
pub fn write_rows<E: Stored>(
    pages: &mut KvPagesMut<'_, E>,
    entries: impl Iterator<Item = u32> + Clone,
    rows: &[f32],
) -> Result<(), Error> {
    let head_dim = pages.layout().head_dim;
    let mut count = 0;
    let mut previous = None;
    for found in entries.clone() {
        valid(found, pages.len())?;
        if let Some(previous) = previous.filter(|&previous| previous >= found) {
            return Err(Error::NotAscending {
                index: count,
                previous,
                found,
            });
        }
        previous = Some(found);
        count += 1;
    }
    let what = "floats of merged rows";
    exactly(what, times(what, count, 2 * head_dim)?, rows.len())?;
    for (entry, row) in entries.zip(rows.chunks_exact(2 * head_dim)) {
        let entry = valid(entry, pages.len())?;
        let (key, value) = row.split_at(head_dim);
        // SAFETY: a valid entry; the view is borrowed exclusively.
        unsafe {
            write(pages.tables(), Part::Key, entry, key);
            write(pages.tables(), Part::Value, entry, value);
        }
    }
    Ok(())
}

/// `entry`, below the number of valid ones.
fn valid(entry: u32, len: usize) -> Result<usize, Error> {
    let entry = entry as usize;
    at_least("valid entries", plus("entry", entry, 1)?, len)?;
    Ok(entry)
}

#[derive(Clone, Copy)]
enum Part {
    Key,
    Value,
}

/// Where keys or values lie, and their scales.
fn columns<'t, 'a, E>(
    tables: &'t Tables<'a, E>,
    part: Part,
) -> (&'t Column<'a, E>, Option<&'t Column<'a, f32>>) {
    let scales = tables.scales.as_ref();
    match part {
        Part::Key => (&tables.keys, scales.map(|scales| &scales.keys)),
        Part::Value => (&tables.values, scales.map(|scales| &scales.values)),
    }
}

/// Calls `take(d, x)` for every number of an entry's key or value. Safety: the entry is valid.
unsafe fn read<E: Stored>(
    tables: &Tables<'_, E>,
    part: Part,
    entry: usize,
    mut take: impl FnMut(usize, f32),
) {
    let head_dim = tables.layout().head_dim;
    let (column, scales) = columns(tables, part);
    // SAFETY: the caller's contract.
    unsafe {
        let row = std::slice::from_raw_parts(column.at(entry).0, head_dim);
        match scales {
            None => row.iter().enumerate().for_each(|(d, x)| take(d, x.widen())),
            Some(scales) => {
                let scale = *scales.at(entry).0;
                row.iter()
                    .enumerate()
                    .for_each(|(d, x)| take(d, x.widen() * scale));
            }
        }
    }
}

/// Writes an entry's key or value and its scale. Safety: the entry is valid and nobody else accesses it.
unsafe fn write<E: Stored>(tables: &Tables<'_, E>, part: Part, entry: usize, row: &[f32]) {
    let (column, scales) = columns(tables, part);
    let to = column.at(entry).0;
    // SAFETY: the caller's contract; a row has `head_dim` numbers.
    let scale = E::narrow(row, |d, x| unsafe { *to.add(d) = x });
    if let Some(scales) = scales {
        // SAFETY: the caller's contract.
        unsafe { *scales.at(entry).0 = scale };
    }
}
