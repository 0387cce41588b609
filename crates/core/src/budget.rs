//! How many bytes a cache takes: exact, rounded up to whole blocks.

/// The dimensions of one sequence's KV cache and of the blocks that it is made of.
///
/// A block holds, for one layer and one KV head, a fixed number of entries: K and V of `head_dim`
/// elements each, a scale of each if the element type has them, and the entry's original position in
/// the text (`u32`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Decoder layers.
    pub layers: usize,
    /// KV heads of each layer.
    pub kv_heads: usize,
    /// Elements of one key or value.
    pub head_dim: usize,
    /// Bytes of one element: 4 for fp32, 2 for fp16 and bf16, 1 for int8.
    pub element_bytes: usize,
    /// Bytes of the scale that comes with one key, and with one value: 4 for int8, 0 for the others.
    pub scale_bytes: usize,
    /// Entries of one block.
    pub block_entries: usize,
}

impl CacheShape {
    /// Bytes of one key or value, its scale included.
    pub fn vector_bytes(&self) -> usize {
        self.head_dim * self.element_bytes + self.scale_bytes
    }

    /// Bytes of one entry of one KV head: K, V and the original position.
    pub fn entry_bytes(&self) -> usize {
        2 * self.vector_bytes() + size_of::<u32>()
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.block_entries * self.entry_bytes()
    }

    /// Blocks of one KV head that holds `entries` entries.
    pub fn blocks_per_head(&self, entries: usize) -> usize {
        entries.div_ceil(self.block_entries)
    }

    /// Blocks of a sequence whose layers hold `entries` entries each.
    pub fn blocks(&self, entries: usize) -> usize {
        self.layers * self.kv_heads * self.blocks_per_head(entries)
    }

    /// Bytes of a number of a query of those that are stored for a whole interval: `f32` beside a cache of `f32`, else
    /// `f16`.
    pub fn query_number_bytes(&self) -> usize {
        self.element_bytes.clamp(2, 4)
    }

    /// Blocks that the queries of so many tokens count as, `num_heads` vectors of
    /// [`query_number_bytes`](Self::query_number_bytes) a number per layer each.
    pub fn query_blocks(&self, tokens: usize, num_heads: usize) -> usize {
        let bytes = self.layers * tokens * num_heads * self.head_dim * self.query_number_bytes();
        bytes.div_ceil(self.block_bytes().max(1))
    }

    /// Bytes of a sequence whose layers hold `entries` entries each, block rounding included.
    pub fn bytes(&self, entries: usize) -> usize {
        self.blocks(entries) * self.block_bytes()
    }

    /// The most entries that layers can hold in `bytes`, in whole blocks.
    pub fn entries_within(&self, bytes: usize) -> usize {
        match self.bytes(1) {
            0 => 0,
            growth => bytes / growth * self.block_entries,
        }
    }

    /// Bytes that one token adds, over all layers and KV heads, before block rounding.
    pub fn token_bytes(&self) -> usize {
        self.layers * self.kv_heads * self.entry_bytes()
    }
}
