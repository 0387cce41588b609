use crate::error::{Error, at_least};
use std::mem::MaybeUninit;

/// A [`ScratchOn`] with memory of its own.
pub type Scratch = ScratchOn<'static>;

/// Temporary memory of [`attend`](crate::attend()) and [`score`](crate::score()), one per thread.
///
/// With memory of its own ([`Scratch::new`]) it grows to the largest call it has served and never shrinks, so that a warm one allocates
/// nothing. On borrowed memory ([`ScratchOn::over`]) it never allocates: a call that needs more is an error.
#[derive(Debug, Default)]
pub struct ScratchOn<'a> {
    memory: Memory<'a>,
}

#[derive(Debug)]
enum Memory<'a> {
    Own(Vec<Line>),
    Borrowed {
        /// Begins on a cache line.
        bytes: &'a mut [MaybeUninit<u8>],
        /// How many of them hold numbers.
        initialised: usize,
    },
}

impl Default for Memory<'_> {
    fn default() -> Self {
        Memory::Own(Vec::new())
    }
}

/// One cache line, so that the buffer starts on one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats in a cache line.
pub(crate) const LINE: usize = 16;

impl Scratch {
    /// An empty one; allocates nothing yet.
    pub fn new() -> Scratch {
        Scratch::default()
    }

    /// Grows to `bytes` now, if it has fewer, so that no call that needs as many allocates.
    pub fn reserve(&mut self, bytes: usize) {
        let needed = bytes.div_ceil(size_of::<Line>());
        if let Memory::Own(lines) = &mut self.memory
            && needed > lines.len()
        {
            lines.resize(needed, Line([0.0; LINE]));
        }
    }
}

impl<'a> ScratchOn<'a> {
    /// One that works on `memory` alone, whatever it holds. A call needs what [`score_scratch_bytes`](crate::score_scratch_bytes) or
    /// [`attend_scratch_bytes`](crate::attend_scratch_bytes) says, counted from the first byte with an address that is a multiple of 64
    /// ([`ScratchOn::bytes`] counts from there): at most 63 bytes more.
    pub fn over(memory: &'a mut [MaybeUninit<u8>]) -> ScratchOn<'a> {
        let skipped = memory.as_ptr().addr().wrapping_neg() % align_of::<Line>();
        let bytes = memory.get_mut(skipped..).unwrap_or_default();
        ScratchOn {
            memory: Memory::Borrowed {
                bytes,
                initialised: 0,
            },
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.memory {
            Memory::Own(lines) => lines.capacity() * size_of::<Line>(),
            Memory::Borrowed { bytes, .. } => bytes.len(),
        }
    }

    /// At least `floats` floats of any (initialised) content, aligned to a cache line.
    pub(crate) fn floats(&mut self, floats: usize) -> Result<*mut f32, Error> {
        match &mut self.memory {
            Memory::Own(lines) => {
                let needed = floats.div_ceil(LINE);
                if needed > lines.len() {
                    lines.resize(needed, Line([0.0; LINE]));
                }
                Ok(lines.as_mut_ptr().cast())
            }
            Memory::Borrowed { bytes, initialised } => {
                let needed = floats.saturating_mul(size_of::<f32>());
                at_least("bytes of scratch", needed, bytes.len())?;
                // Once: kernels read some numbers that they never use.
                if let Some(fresh) = bytes.get_mut(*initialised..needed) {
                    fresh.fill(MaybeUninit::new(0));
                    *initialised = needed;
                }
                Ok(bytes.as_mut_ptr().cast())
            }
        }
    }
}

/// Hands out consecutive, cache-line-aligned parts of a scratch buffer; run once with a null base it measures.
pub(crate) struct Parts {
    base: *mut f32,
    used: usize,
}

impl Parts {
    pub(crate) fn new(base: *mut f32) -> Parts {
        Parts { base, used: 0 }
    }

    /// The next part of `floats` floats.
    pub(crate) fn take(&mut self, floats: usize) -> *mut f32 {
        let part = self.base.wrapping_add(self.used);
        self.used = self
            .used
            .saturating_add(floats.div_ceil(LINE).saturating_mul(LINE));
        part
    }

    /// Floats handed out so far.
    pub(crate) fn used(&self) -> usize {
        self.used
    }
}
