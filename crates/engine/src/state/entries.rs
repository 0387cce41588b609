//! The entries of a saved sequence, and what they must be.

use std::ops::Range;

use reasoning_rpc_core::CacheShape;

use super::restore::{Sections, refuse, too_large};
use crate::cache::CacheType;
use crate::error::Result;
use crate::sequence::Gone;

/// Keys, values, scales and positions of every layer and KV head, one behind the other.
pub(super) struct SavedEntries<'a> {
    pub bytes: &'a [u8],
    /// Of each layer and KV head.
    pub lens: Vec<usize>,
    entry_bytes: usize,
    /// Of each entry's keys and values, and of those with their scales.
    planes: [usize; 2],
}

/// The entries of a KV head.
struct SavedHead<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> SavedHead<'a> {
    fn position_bytes(&self) -> &'a [u8] {
        &self.bytes[self.bytes.len() - size_of::<u32>() * self.len..]
    }

    fn positions(&self) -> impl Iterator<Item = u32> {
        let words = self.position_bytes().as_chunks::<4>().0.iter();
        words.map(|word| u32::from_le_bytes(*word))
    }
}

impl<'a> SavedEntries<'a> {
    pub fn take(sections: &mut Sections<'a>, lens: Vec<usize>, shape: &CacheShape) -> Result<Self> {
        let entry_bytes = shape.entry_bytes();
        let entries = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len));
        let bytes = entries.and_then(|entries| entries.checked_mul(entry_bytes));
        let elements = 2 * shape.head_dim * shape.element_bytes;
        Ok(Self {
            bytes: sections.take(bytes.ok_or_else(too_large)?)?,
            lens,
            entry_bytes,
            planes: [elements, elements + 2 * shape.scale_bytes],
        })
    }

    fn heads(&self) -> impl Iterator<Item = SavedHead<'a>> {
        let mut rest = self.bytes;
        self.lens.iter().map(move |&len| {
            let (bytes, after) = rest.split_at(len * self.entry_bytes);
            rest = after;
            SavedHead { bytes, len }
        })
    }

    /// Whether all keys, values and scales are such as a step writes.
    pub fn are_numbers(&self, element: CacheType) -> bool {
        self.heads().all(|head| {
            let [planes, scales] = self.planes.map(|bytes| bytes * head.len);
            are_numbers(&head.bytes[..planes], element) && are_scales(&head.bytes[planes..scales])
        })
    }

    /// Positions of every KV head, where they follow from the text.
    pub fn check_equal_positions(&self, expected: &[u32]) -> Result<()> {
        for head in self.heads() {
            if !head.positions().eq(expected.iter().copied()) {
                return refuse("positions", "those of no thought that has gone", "others");
            }
        }
        Ok(())
    }

    /// Positions of every KV head: ascending, of written tokens, all that were given and all since the last
    /// compression's window began, at `recent_from`, among them; the same for all KV heads of a layer if they share a
    /// set. Where single entries were dropped, those below `unordered_until` ascend as far as they were given first,
    /// and are in any order behind that.
    pub fn check_positions(
        &self,
        given: &[Range<u32>],
        recent_from: u32,
        (written, unordered_until): (usize, usize),
        (kv_heads, per_kv_head): (usize, bool),
    ) -> Result<()> {
        let end = written as u32;
        // Positions that must be there, below `recent_from` and from there on.
        let early: usize = given
            .iter()
            .map(|range| range.end.min(recent_from).min(end).saturating_sub(range.start) as usize)
            .sum();
        let needed = early + end.saturating_sub(recent_from) as usize;
        let mut first: &[u8] = &[];
        let mut sorted = Vec::new();
        for (index, head) in self.heads().enumerate() {
            let front = match given.first() {
                Some(range) => (range.end.min(end) as usize).min(unordered_until).min(head.len),
                None => 0,
            };
            let tail = (written - unordered_until).min(head.len);
            sorted.clear();
            sorted.extend(head.positions());
            if unordered_until > 0 {
                let in_front = (0..)
                    .zip(&sorted[..front])
                    .all(|(expected, &found)| expected == found);
                let behind = (0..end).rev().zip(sorted[head.len - tail..].iter().rev());
                if !in_front || !behind.into_iter().all(|(expected, &found)| expected == found) {
                    return refuse("positions", "those given first, ..., the newest ones", "others");
                }
                sorted.sort_unstable();
            }
            let mut ranges = given.iter().peekable();
            let (mut before, mut found) = (None, 0);
            for &position in &sorted {
                if position >= end || before.is_some_and(|before| before >= position) {
                    return refuse("positions", format!("ascending ones below {end}"), position);
                }
                before = Some(position);
                while ranges.next_if(|range| range.end <= position).is_some() {}
                let is_given = ranges.peek().is_some_and(|range| range.start <= position);
                found += usize::from(is_given || position >= recent_from);
            }
            if found != needed {
                return refuse("positions", format!("{needed} that no compression drops"), found);
            }
            match index % kv_heads {
                0 => first = head.position_bytes(),
                _ if !per_kv_head && first != head.position_bytes() => {
                    return refuse("positions", "the same for all KV heads of a layer", "others");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Positions of a text that stay when thoughts have gone; all of them, if none has.
pub(super) fn what_stays(gone: &[Gone], given: &[Range<u32>], written: usize) -> Vec<u32> {
    let (mut gone, mut given) = (gone.iter().peekable(), given.iter().peekable());
    let stays = |&position: &u32| {
        while gone
            .next_if(|gone| gone.positions.end <= position as usize)
            .is_some()
        {}
        while given.next_if(|range| range.end <= position).is_some() {}
        let was_thought = gone
            .peek()
            .is_some_and(|gone| gone.positions.start <= position as usize);
        !was_thought || given.peek().is_some_and(|range| range.start <= position)
    };
    (0..written as u32).filter(stays).collect()
}

/// Whether elements are neither infinite nor NaN, which no step writes and no score survives.
fn are_numbers(bytes: &[u8], element: CacheType) -> bool {
    const F16_EXPONENT: u16 = 0x7c00;
    const BF16_EXPONENT: u16 = 0x7f80;
    let halves_below = |exponent| {
        let mut halves = bytes.as_chunks::<2>().0.iter();
        halves.all(|&word| u16::from_le_bytes(word) & exponent != exponent)
    };
    match element {
        CacheType::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .all(|&word| f32::from_le_bytes(word).is_finite()),
        CacheType::F16 => halves_below(F16_EXPONENT),
        CacheType::Bf16 => halves_below(BF16_EXPONENT),
        // The one pattern that no number is rounded to.
        CacheType::I8 => bytes.iter().all(|&byte| byte as i8 != i8::MIN),
    }
}

/// Whether scales are such as a step writes: neither negative, infinite nor NaN.
fn are_scales(bytes: &[u8]) -> bool {
    let scales = bytes.as_chunks::<4>().0.iter();
    scales
        .map(|&word| f32::from_le_bytes(word))
        .all(|scale| scale.is_finite() && scale >= 0.0)
}
