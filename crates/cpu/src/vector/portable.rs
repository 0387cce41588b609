use super::{Kernel, Vector};
use crate::element::{Element, f16_to_f32};
use half::{bf16, f16};

/// Eight numbers in an array; the compiler makes of it what the target's baseline allows.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Portable, f: impl Fn(f32, f32) -> f32) -> Portable {
        let mut out = self;
        for i in 0..8 {
            out.0[i] = f(self.0[i], other.0[i]);
        }
        out
    }
}

// SAFETY of the pointer functions below: the caller's pointers are good for eight (half: four) numbers, as `Vector` demands.
impl Vector for Portable {
    const LANES: usize = 8;
    const QUERIES: usize = 2;
    const QUERIES_OF_FOUR: usize = 2;
    const CONVERT_ABOVE: usize = 1;

    const INT_QUERIES_OF_FOUR: usize = 2;
    type Ints = [i32; 8];
    type Words = [i16; 16];

    #[inline(always)]
    unsafe fn no_ints() -> [i32; 8] {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn load_words(from: *const i16) -> [i16; 16] {
        // SAFETY: sixteen readable numbers, any alignment.
        unsafe { from.cast::<[i16; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn words_of(from: *const i8) -> [i16; 16] {
        // SAFETY: sixteen readable numbers, any alignment.
        unsafe { from.cast::<[i8; 16]>().read_unaligned() }.map(i16::from)
    }

    #[inline(always)]
    unsafe fn pairs_of(first: *const i8, second: *const i8) -> [[i16; 16]; 2] {
        // SAFETY: the caller's contract.
        let (a, b) = unsafe { (Self::words_of(first), Self::words_of(second)) };
        let half = |from: usize| std::array::from_fn(|i| if i % 2 == 0 { a } else { b }[from + i / 2]);
        [half(0), half(8)]
    }

    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> [i16; 16] {
        // SAFETY: two readable numbers, any alignment.
        let pair = unsafe { from.cast::<[i16; 2]>().read_unaligned() };
        std::array::from_fn(|i| pair[i % 2])
    }

    #[inline(always)]
    unsafe fn add_products(a: [i16; 16], b: [i16; 16], sum: &mut [i32; 8]) {
        for i in 0..8 {
            sum[i] +=
                i32::from(a[2 * i]) * i32::from(b[2 * i]) + i32::from(a[2 * i + 1]) * i32::from(b[2 * i + 1]);
        }
    }

    #[inline(always)]
    unsafe fn sum_ints(eight: [[i32; 8]; 8]) -> [i32; 8] {
        eight.map(|ints| ints.iter().sum())
    }

    #[inline(always)]
    unsafe fn of_ints(ints: [i32; 8]) -> Self {
        Portable(ints.map(|int| int as f32))
    }

    #[inline(always)]
    unsafe fn store_words(self, to: *mut i16) {
        // SAFETY: eight writable numbers, any alignment. The cast saturates.
        unsafe {
            to.cast::<[i16; 8]>()
                .write_unaligned(self.0.map(|x| x.round_ties_even() as i16))
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: eight readable numbers, any alignment.
        Portable(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f32) -> Self {
        // SAFETY: four readable numbers, any alignment.
        let [a, b, c, d] = unsafe { from.cast::<[f32; 4]>().read_unaligned() };
        Portable([a, b, c, d, 0.0, 0.0, 0.0, 0.0])
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: eight readable numbers, any alignment.
        let eight = unsafe { from.cast::<[f16; 8]>().read_unaligned() };
        Portable(eight.map(f16_to_f32))
    }

    #[inline(always)]
    unsafe fn load_half_f16(from: *const f16) -> Self {
        // SAFETY: four readable numbers, any alignment.
        let [a, b, c, d] = unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(f16_to_f32);
        Portable([a, b, c, d, 0.0, 0.0, 0.0, 0.0])
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: eight readable numbers, any alignment.
        let eight = unsafe { from.cast::<[bf16; 8]>().read_unaligned() };
        Portable(eight.map(Element::to_f32))
    }

    #[inline(always)]
    unsafe fn load_half_bf16(from: *const bf16) -> Self {
        // SAFETY: four readable numbers, any alignment.
        let [a, b, c, d] = unsafe { from.cast::<[bf16; 4]>().read_unaligned() }.map(Element::to_f32);
        Portable([a, b, c, d, 0.0, 0.0, 0.0, 0.0])
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: eight readable numbers, any alignment.
        let eight = unsafe { from.cast::<[i8; 8]>().read_unaligned() };
        Portable(eight.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_half_i8(from: *const i8) -> Self {
        // SAFETY: four readable numbers, any alignment.
        let [a, b, c, d] = unsafe { from.cast::<[i8; 4]>().read_unaligned() }.map(f32::from);
        Portable([a, b, c, d, 0.0, 0.0, 0.0, 0.0])
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: eight writable numbers, any alignment.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f32) {
        let [a, b, c, d, ..] = self.0;
        // SAFETY: four writable numbers, any alignment.
        unsafe { to.cast::<[f32; 4]>().write_unaligned([a, b, c, d]) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: eight writable numbers, any alignment.
        unsafe {
            to.cast::<[f16; 8]>()
                .write_unaligned(self.0.map(<f16 as Element>::from_f32))
        }
    }

    #[inline(always)]
    unsafe fn store_half_f16(self, to: *mut f16) {
        let [a, b, c, d, ..] = self.0.map(<f16 as Element>::from_f32);
        // SAFETY: four writable numbers, any alignment.
        unsafe { to.cast::<[f16; 4]>().write_unaligned([a, b, c, d]) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: eight writable numbers, any alignment.
        unsafe {
            to.cast::<[bf16; 8]>()
                .write_unaligned(self.0.map(<bf16 as Element>::from_f32))
        }
    }

    #[inline(always)]
    unsafe fn store_half_bf16(self, to: *mut bf16) {
        let [a, b, c, d, ..] = self.0.map(<bf16 as Element>::from_f32);
        // SAFETY: four writable numbers, any alignment.
        unsafe { to.cast::<[bf16; 4]>().write_unaligned([a, b, c, d]) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // Two roundings: `f32::mul_add` is a library call where the target has no such instruction.
        self.zip(factor, |a, b| a * b).zip(term, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no room for a fraction.
        self.zip(Portable([12_582_912.0; 8]), |a, b| (a + b) - b)
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, power: Self) -> Self {
        // `as` saturates and maps NaN to 0, so the shift is defined for every input.
        self.zip(power, |a, b| {
            a * f32::from_bits(((b as i32).wrapping_add(127) as u32) << 23)
        })
    }

    #[inline(always)]
    unsafe fn zero_where_less(self, tested: Self, limit: Self) -> Self {
        let mut out = self;
        for i in 0..8 {
            out.0[i] = if tested.0[i] < limit.0[i] { 0.0 } else { self.0[i] };
        }
        out
    }

    #[inline(always)]
    unsafe fn first_or(self, count: usize, rest: f32) -> Self {
        let mut out = self;
        for i in 0..8 {
            out.0[i] = if i < count { self.0[i] } else { rest };
        }
        out
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn sum_four(four: [Self; 4]) -> [f32; 4] {
        // SAFETY: no pointers.
        four.map(|one| unsafe { one.sum() })
    }

    #[inline(always)]
    unsafe fn sum_eight(first: [Self; 4], second: [Self; 4]) -> [[f32; 4]; 2] {
        // SAFETY: no pointers.
        unsafe { [Self::sum_four(first), Self::sum_four(second)] }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self.0[0]
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0
            .into_iter()
            .fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's contract.
        unsafe { kernel.run::<Self>() }
    }
}
