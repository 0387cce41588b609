//! Handles: numbers in the shape of pointers. None is ever dereferenced; each names a kind, an index
//! into that kind's table and the generation of what lies there.
//!
//! The upper 16 bits make an address that no x86-64 or AArch64 process maps, so that neither a
//! pointer of the host's nor a small integer can be taken for a handle, and garbage collectors that
//! scan for pointers (Go's) leave it alone.

use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Failure, RRPC_ERROR_INVALID_HANDLE, RRPC_ERROR_OUT_OF_MEMORY};

const INDEX_BITS: u32 = 20;
const GENERATION_BITS: u32 = 28;
const LAST_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

/// What a handle names; the value is its upper 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    Engine = 0x5201,
    Sequence = 0x5202,
    Compressor = 0x5203,
    Tensor = 0x5204,
    Scheduler = 0x5205,
    Answer = 0x5206,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Engine,
        Self::Sequence,
        Self::Compressor,
        Self::Tensor,
        Self::Scheduler,
        Self::Answer,
    ];

    fn of(handle: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| handle >> 48 == kind as usize)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Engine => "an engine",
            Self::Sequence => "a sequence",
            Self::Compressor => "a compressor",
            Self::Tensor => "a tensor",
            Self::Scheduler => "a scheduler",
            Self::Answer => "an answer",
        }
    }
}

/// The live things of one kind.
pub(crate) struct Table<T> {
    kind: Kind,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

struct Entry<T> {
    generation: u32,
    value: Option<Arc<T>>,
}

impl<T> Table<T> {
    pub(crate) const fn new(kind: Kind) -> Self {
        let slots = Slots {
            entries: Vec::new(),
            free: Vec::new(),
        };
        Self {
            kind,
            slots: RwLock::new(slots),
        }
    }

    /// Stores a value and returns its handle.
    pub(crate) fn insert(&self, value: T) -> Result<usize, Failure> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let index = match slots.free.pop() {
            Some(index) => index,
            None if slots.entries.len() < 1 << INDEX_BITS => {
                slots.entries.push(Entry {
                    generation: 1,
                    value: None,
                });
                (slots.entries.len() - 1) as u32
            }
            None => {
                return Err(Failure::new(
                    RRPC_ERROR_OUT_OF_MEMORY,
                    format!("{} handles of {} are in use", 1 << INDEX_BITS, self.kind.name()),
                ));
            }
        };
        let entry = &mut slots.entries[index as usize];
        entry.value = Some(Arc::new(value));
        Ok((self.kind as usize) << 48 | (entry.generation as usize) << INDEX_BITS | index as usize)
    }

    /// What a handle names. It stays alive while the caller holds it, even if it is freed meanwhile.
    pub(crate) fn get(&self, argument: &str, handle: usize) -> Result<Arc<T>, Failure> {
        let index = self.check(argument, handle)?;
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let entry = slots.entries.get(index).ok_or_else(|| self.unknown(argument))?;
        match &entry.value {
            Some(value) if entry.generation == generation(handle) => Ok(Arc::clone(value)),
            _ => Err(Failure::new(
                RRPC_ERROR_INVALID_HANDLE,
                format!(
                    "{argument}: expected {}, found one that was freed",
                    self.kind.name()
                ),
            )),
        }
    }

    /// Makes a handle stale and returns what it named; `None` if it names nothing.
    pub(crate) fn remove(&self, handle: usize) -> Option<Arc<T>> {
        let index = self.check("", handle).ok()?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let entry = slots.entries.get_mut(index)?;
        if entry.generation != generation(handle) {
            return None;
        }
        let value = entry.value.take()?;
        // The place is used again until its generations run out.
        if entry.generation < LAST_GENERATION {
            entry.generation += 1;
            slots.free.push(index as u32);
        }
        Some(value)
    }

    /// The index in a handle of this kind.
    fn check(&self, argument: &str, handle: usize) -> Result<usize, Failure> {
        if handle == 0 {
            return Err(Failure::null(argument));
        }
        match Kind::of(handle) {
            Some(kind) if kind == self.kind => Ok(handle & ((1 << INDEX_BITS) - 1)),
            Some(kind) => Err(Failure::new(
                RRPC_ERROR_INVALID_HANDLE,
                format!("{argument}: expected {}, found {}", self.kind.name(), kind.name()),
            )),
            None => Err(self.unknown(argument)),
        }
    }

    fn unknown(&self, argument: &str) -> Failure {
        Failure::new(
            RRPC_ERROR_INVALID_HANDLE,
            format!(
                "{argument}: expected {}, found no handle of this library",
                self.kind.name()
            ),
        )
    }
}

fn generation(handle: usize) -> u32 {
    (handle >> INDEX_BITS) as u32 & LAST_GENERATION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_handle_never_names_anything_again() {
        let table = Table::new(Kind::Sequence);
        let first = table.insert("first").unwrap();
        assert_eq!(*table.get("x", first).unwrap(), "first");
        assert!(table.remove(first).is_some());
        assert!(table.remove(first).is_none());
        let second = table.insert("second").unwrap();
        assert_ne!(first, second);
        assert!(table.get("x", first).is_err());
        assert_eq!(*table.get("x", second).unwrap(), "second");
    }

    #[test]
    fn a_place_whose_generations_ran_out_is_left() {
        let table = Table::new(Kind::Engine);
        let handle = table.insert(()).unwrap();
        table.slots.write().unwrap().entries[0].generation = LAST_GENERATION;
        let last = handle | (LAST_GENERATION as usize) << INDEX_BITS;
        assert!(table.remove(last).is_some());
        let next = table.insert(()).unwrap();
        assert_eq!(next & ((1 << INDEX_BITS) - 1), 1, "another place");
        assert!(table.get("x", last).is_err());
    }

    #[test]
    fn what_is_no_handle_is_told_apart() {
        let table: Table<()> = Table::new(Kind::Engine);
        let other: Table<()> = Table::new(Kind::Sequence);
        let message = |handle| table.get("engine", handle).unwrap_err().message;
        assert!(message(0).contains("NULL"));
        assert!(message(0x7fff_1234_5678).contains("no handle"));
        assert!(message(usize::MAX).contains("no handle"));
        assert!(message(other.insert(()).unwrap()).contains("found a sequence"));
        assert!(message((Kind::Engine as usize) << 48 | 77).contains("no handle"));
    }
}
