use crate::vector::Vector;
use half::{bf16, f16};

/// A number format that cache entries are stored in: an [`Element`], or `i8` with scales. Sealed.
///
/// An `i8` stands for `f32::from(it) * scale`, rounded once, with one `f32` scale for an entry's key and one for its value
/// ([`Scales`](crate::Scales)).
pub trait Stored: sealed::Sealed + Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// Bytes of one element.
    const SIZE: usize;
    /// `f32`, `f16`, `bf16` or `i8`.
    const NAME: &'static str;
    /// Whether the format comes with scales.
    const SCALED: bool;
}

/// A floating-point format that cache entries are stored in: `f32`, `half::f16` or `half::bf16`. Sealed.
pub trait Element: Stored + sealed::Store {
    /// The nearest representable number, ties to even; NaN stays NaN. For `f16`, what lies beyond its range (infinities included)
    /// becomes +-65504. `bf16` has the range of `f32`, so it keeps infinities, and numbers that round beyond its largest become
    /// infinite. (The types of `half` have functions of their own of that name, and `f16`'s does not saturate: name the trait where the
    /// type is known.)
    fn from_f32(value: f32) -> Self;
    /// The same number as `f32`, exactly.
    fn to_f32(self) -> f32;
}

pub(crate) mod sealed {
    use super::*;

    /// What a format needs to be read from and to be written row by row.
    pub trait Sealed: Copy {
        /// Loads `V::LANES` elements, without their scale. Safety: they are readable and the CPU has V's instructions.
        unsafe fn load<V: Vector>(from: *const Self) -> V;
        /// Loads `V::LANES / 2` elements, zeros above. Safety: as for `load`.
        unsafe fn load_half<V: Vector>(from: *const Self) -> V;
        /// Stores a row and returns its scale; 1 where there are none. Safety: as for `load`, `head_dim` numbers on both sides.
        unsafe fn store_row<V: Vector>(from: *const f32, head_dim: usize, to: *mut Self) -> f32;
        /// The number without its scale.
        fn widen(self) -> f32;
        /// Calls `put(d, element)` for every number of a row and returns the row's scale; 1 where there are none.
        fn narrow(row: &[f32], put: impl FnMut(usize, Self)) -> f32;
    }

    /// What a floating-point format needs from a vector.
    pub trait Store: Sealed {
        /// Stores the elements as [`Element::from_f32`] does. Safety: as for `load`, writable.
        unsafe fn store<V: Vector>(value: V, to: *mut Self);
        /// The lower half of `store`. Safety: as for `store`.
        unsafe fn store_half<V: Vector>(value: V, to: *mut Self);
    }
}

/// A floating-point format and the functions of [`Vector`] that load and store it.
macro_rules! element {
    ($type:ty, $size:literal, $name:literal, $load:ident, $load_half:ident, $store:ident, $store_half:ident) => {
        impl Stored for $type {
            const SIZE: usize = $size;
            const NAME: &'static str = $name;
            const SCALED: bool = false;
        }

        impl sealed::Sealed for $type {
            #[inline(always)]
            unsafe fn load<V: Vector>(from: *const $type) -> V {
                // SAFETY: the caller's contract is the callee's.
                unsafe { V::$load(from) }
            }

            #[inline(always)]
            unsafe fn load_half<V: Vector>(from: *const $type) -> V {
                // SAFETY: the caller's contract is the callee's.
                unsafe { V::$load_half(from) }
            }

            #[inline(always)]
            unsafe fn store_row<V: Vector>(from: *const f32, head_dim: usize, to: *mut $type) -> f32 {
                // SAFETY: the caller's contract is the callee's.
                unsafe { crate::kernels::store_row::<V, $type>(from, head_dim, to) };
                1.0
            }

            #[inline(always)]
            fn widen(self) -> f32 {
                Element::to_f32(self)
            }

            #[inline(always)]
            fn narrow(row: &[f32], mut put: impl FnMut(usize, $type)) -> f32 {
                for (d, &x) in row.iter().enumerate() {
                    put(d, <$type as Element>::from_f32(x));
                }
                1.0
            }
        }

        impl sealed::Store for $type {
            #[inline(always)]
            unsafe fn store<V: Vector>(value: V, to: *mut $type) {
                // SAFETY: the caller's contract is the callee's.
                unsafe { value.$store(to) }
            }

            #[inline(always)]
            unsafe fn store_half<V: Vector>(value: V, to: *mut $type) {
                // SAFETY: the caller's contract is the callee's.
                unsafe { value.$store_half(to) }
            }
        }
    };
}

element!(f32, 4, "f32", load, load_half, store, store_half);
element!(f16, 2, "f16", load_f16, load_half_f16, store_f16, store_half_f16);
element!(
    bf16,
    2,
    "bf16",
    load_bf16,
    load_half_bf16,
    store_bf16,
    store_half_bf16
);

impl Element for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
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

impl Element for bf16 {
    /// On the bits, so that it is exact on threads that flush denormals.
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // A NaN is not rounded: the carry of a full payload would change its sign. It becomes quiet, as not to lose its last bit.
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Stored for i8 {
    const SIZE: usize = 1;
    const NAME: &'static str = "i8";
    const SCALED: bool = true;
}

impl sealed::Sealed for i8 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const i8) -> V {
        // SAFETY: the caller's contract is the callee's.
        unsafe { V::load_i8(from) }
    }

    #[inline(always)]
    unsafe fn load_half<V: Vector>(from: *const i8) -> V {
        // SAFETY: the caller's contract is the callee's.
        unsafe { V::load_half_i8(from) }
    }

    #[inline(always)]
    unsafe fn store_row<V: Vector>(from: *const f32, head_dim: usize, to: *mut i8) -> f32 {
        // SAFETY: the caller's contract.
        let row = unsafe { std::slice::from_raw_parts(from, head_dim) };
        // SAFETY: as above.
        i8::narrow(row, |d, x| unsafe { *to.add(d) = x })
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    fn narrow(row: &[f32], mut put: impl FnMut(usize, i8)) -> f32 {
        let mut scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
        // `max` passes over NaN.
        if row.iter().any(|x| !x.is_finite()) {
            scale = f32::NAN;
        }
        for (d, &x) in row.iter().enumerate() {
            let number = (x / scale).round_ties_even().clamp(-127.0, 127.0);
            // A cast takes NaN, which only a scale of 0 or NaN gives, to 0.
            put(d, if scale > 0.0 { number as i8 } else { 0 });
        }
        scale
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
