/// Temporary memory of [`attend`](crate::attend()) and [`score`](crate::score()), one per thread. It grows to the largest call it has
/// served and never shrinks, so that a warm one allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    lines: Vec<Line>,
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

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// At least `floats` floats of any (initialised) content, aligned to a cache line.
    pub(crate) fn floats(&mut self, floats: usize) -> *mut f32 {
        let lines = floats.div_ceil(LINE);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; LINE]));
        }
        self.lines.as_mut_ptr().cast()
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
