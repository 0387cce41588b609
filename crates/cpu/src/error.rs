use crate::Simd;
use std::fmt;

/// Why an operation refused its arguments. Nothing was written when one of these comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The CPU (or this build) lacks the instruction set.
    SimdUnavailable {
        /// The set asked for.
        simd: Simd,
    },
    /// A head dimension that is not a multiple of 8 between 8 and [`MAX_HEAD_DIM`](crate::MAX_HEAD_DIM).
    HeadDim {
        /// The dimension given.
        found: usize,
    },
    /// A number that must have one exact value.
    Mismatch {
        /// What was counted.
        what: &'static str,
        /// The value that the other arguments imply.
        expected: usize,
        /// The value given.
        found: usize,
    },
    /// A number below its least value.
    TooSmall {
        /// What was counted.
        what: &'static str,
        /// The least value that the other arguments allow.
        least: usize,
        /// The value given.
        found: usize,
    },
    /// A number above its largest value.
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// The largest value that the other arguments allow.
        most: usize,
        /// The value given.
        found: usize,
    },
    /// A size that does not fit the address space.
    Overflow {
        /// What was being computed.
        what: &'static str,
    },
    /// A candidate range whose end lies before its start or beyond the cache.
    Range {
        /// Which of the ranges.
        index: usize,
        /// Its first entry.
        start: usize,
        /// One past its last entry.
        end: usize,
        /// Valid entries in the cache.
        len: usize,
    },
    /// Entries to keep or to write that are not strictly ascending.
    NotAscending {
        /// Where in the list.
        index: usize,
        /// The entry before.
        previous: u32,
        /// The entry given.
        found: u32,
    },
    /// A kept entry that would have to move backwards.
    Behind {
        /// Where in the list.
        index: usize,
        /// The entry it would become.
        destination: usize,
        /// The entry given.
        found: u32,
    },
    /// A merge of an entry into itself.
    MergeIntoItself {
        /// Where in the list.
        index: usize,
        /// The entry.
        entry: u32,
    },
    /// A merge that does not follow the one before it.
    MergeOrder {
        /// Where in the list.
        index: usize,
        /// The entry merged into.
        into: u32,
        /// The entry merged.
        from: u32,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::SimdUnavailable { simd } => {
                write!(f, "this CPU or build cannot run {}", simd.name())
            }
            Error::HeadDim { found } => {
                write!(
                    f,
                    "head_dim must be a multiple of 8 from 8 to {}, found {found}",
                    crate::MAX_HEAD_DIM
                )
            }
            Error::Mismatch {
                what,
                expected,
                found,
            } => write!(f, "{what}: expected {expected}, found {found}"),
            Error::TooSmall { what, least, found } => {
                write!(f, "{what}: at least {least} expected, found {found}")
            }
            Error::TooLarge { what, most, found } => {
                write!(f, "{what}: at most {most} expected, found {found}")
            }
            Error::Overflow { what } => write!(f, "{what} does not fit the address space"),
            Error::Range {
                index,
                start,
                end,
                len,
            } => {
                write!(
                    f,
                    "candidate range {index} is {start}..{end}, not an ascending range within {len} entries"
                )
            }
            Error::NotAscending {
                index,
                previous,
                found,
            } => {
                write!(
                    f,
                    "entry {index} of the list is {found}, which does not follow {previous}: entries must ascend strictly"
                )
            }
            Error::Behind {
                index,
                destination,
                found,
            } => {
                write!(
                    f,
                    "kept[{index}] is {found}, before the entry {destination} that it would become"
                )
            }
            Error::MergeIntoItself { index, entry } => {
                write!(f, "merge {index} is of entry {entry} into itself")
            }
            Error::MergeOrder { index, into, from } => {
                write!(
                    f,
                    "merge {index}, of entry {from} into {into}, does not follow the one before: merges must ascend by (into, from)"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// `found == expected`, else [`Error::Mismatch`].
pub(crate) fn exactly(what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::Mismatch {
            what,
            expected,
            found,
        })
    }
}

/// `found >= least`, else [`Error::TooSmall`].
pub(crate) fn at_least(what: &'static str, least: usize, found: usize) -> Result<(), Error> {
    if found >= least {
        Ok(())
    } else {
        Err(Error::TooSmall { what, least, found })
    }
}

/// `found <= most`, else [`Error::TooLarge`].
pub(crate) fn at_most(what: &'static str, most: usize, found: usize) -> Result<(), Error> {
    if found <= most {
        Ok(())
    } else {
        Err(Error::TooLarge { what, most, found })
    }
}

/// `a * b`, else [`Error::Overflow`].
pub(crate) fn times(what: &'static str, a: usize, b: usize) -> Result<usize, Error> {
    a.checked_mul(b).ok_or(Error::Overflow { what })
}

/// `a + b`, else [`Error::Overflow`].
pub(crate) fn plus(what: &'static str, a: usize, b: usize) -> Result<usize, Error> {
    a.checked_add(b).ok_or(Error::Overflow { what })
}
