//! Element types of a cache.

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// 4 bytes.
    F32,
    /// 2 bytes, rounded to nearest even.
    #[default]
    F16,
    /// 2 bytes, rounded to nearest even: the range of fp32, 8 bits of precision.
    Bf16,
    /// 1 byte, and a float32 scale for each key and each value: its largest magnitude / 127.
    I8,
}

impl CacheType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 => 1,
        }
    }

    /// Bytes of the scale of one key, or of one value; 0 without scales.
    pub fn scale_bytes(self) -> usize {
        match self {
            Self::I8 => size_of::<f32>(),
            _ => 0,
        }
    }

    /// The name that errors, options and saved sequences use.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "fp32",
            Self::F16 => "fp16",
            Self::Bf16 => "bf16",
            Self::I8 => "int8",
        }
    }
}
