use crate::vector::Vector;
use half::f16;

/// A number format that cache entries are stored in: `f32` or `half::f16`. Sealed.
pub trait Element: sealed::Sealed + Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// Bytes of one element.
    const SIZE: usize;
    /// `f32` or `f16`.
    const NAME: &'static str;
    /// The nearest representable number, ties to even. For `f16`, what lies beyond its range (infinities included) becomes +-65504;
    /// NaN stays NaN. (`half::f16` has a function of its own of that name, which does not saturate: name the trait where the type is
    /// known.)
    fn from_f32(value: f32) -> Self;
    /// The same number as `f32`, exactly.
    fn to_f32(self) -> f32;
}

pub(crate) mod sealed {
    use super::*;

    /// What a format needs from a vector.
    pub trait Sealed: Sized {
        /// Loads `V::LANES` elements. Safety: they are readable and the CPU has V's instructions.
        unsafe fn load<V: Vector>(from: *const Self) -> V;
        /// Loads `V::LANES / 2` elements, zeros above. Safety: as for `load`.
        unsafe fn load_half<V: Vector>(from: *const Self) -> V;
        /// Stores the elements as [`Element::from_f32`](super::Element::from_f32) does. Safety: as for `load`, writable.
        unsafe fn store<V: Vector>(value: V, to: *mut Self);
        /// The lower half of `store`. Safety: as for `store`.
        unsafe fn store_half<V: Vector>(value: V, to: *mut Self);
    }
}

impl Element for f32 {
    const SIZE: usize = 4;
    const NAME: &'static str = "f32";

    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl sealed::Sealed for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> V {
        // SAFETY: the caller's contract is the callee's.
        unsafe { V::load(from) }
    }

    #[inline(always)]
    unsafe fn load_half<V: Vector>(from: *const f32) -> V {
        // SAFETY: the caller's contract is the callee's.
        unsafe { V::load_half(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(value: V, to: *mut f32) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { value.store(to) }
    }

    #[inline(always)]
    unsafe fn store_half<V: Vector>(value: V, to: *mut f32) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { value.store_half(to) }
    }
}

impl Element for f16 {
    const SIZE: usize = 2;
    const NAME: &'static str = "f16";

    #[inline(always)]
    fn from_f32(value: f32) -> f16 {
        let most = f16::MAX.to_f32_const();
        // `clamp` keeps NaN.
        f16::from_f32_const(value.clamp(-most, most))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16_to_f32(self)
    }
}

impl sealed::Sealed for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f16) -> V {
        // SAFETY: the caller's contract is the callee's.
        unsafe { V::load_f16(from) }
    }

    #[inline(always)]
    unsafe fn load_half<V: Vector>(from: *const f16) -> V {
        // SAFETY: the caller's contract is the callee's.
        unsafe { V::load_half_f16(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(value: V, to: *mut f16) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { value.store_f16(to) }
    }

    #[inline(always)]
    unsafe fn store_half<V: Vector>(value: V, to: *mut f16) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { value.store_half_f16(to) }
    }
}

/// Exact conversion without branches, so that a loop over it vectorises, and without arithmetic on denormals, so that it is exact on
/// threads that flush them.
#[inline(always)]
pub(crate) fn f16_to_f32(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    let exponent = bits & 0x7c00;
    // Normal numbers: rebias the exponent from 15 to 127. Infinity and NaN: by the same amount again, to all ones.
    let rebias = 112 << 23;
    let normal = magnitude
        .wrapping_add(rebias)
        .wrapping_add(if exponent == 0x7c00 { rebias } else { 0 });
    // Denormals: as the fraction of a number in [2^-14, 2^-13), less 2^-14.
    let offset = 113 << 23;
    let denormal = (f32::from_bits(magnitude | offset) - f32::from_bits(offset)).to_bits();
    f32::from_bits(sign | if exponent == 0 { denormal } else { normal })
}
