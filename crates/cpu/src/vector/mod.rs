//! One register of `f32` numbers, three times: the kernels are written once against [`Vector`] and compiled for each instruction set
//! through [`Kernel`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

use half::{bf16, f16};

/// A computation that [`Simd::run`](crate::Simd) compiles once per instruction set.
pub trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, as everything it calls on the way to a vector operation: that is what compiles it for the
    /// instruction set. Safety: the CPU has V's instructions, and the kernel's own contract.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// `LANES` numbers. Every function needs a CPU with the instructions of the implementing type (that is the whole safety contract of
/// those without pointers); pointers need not be aligned.
pub trait Vector: Copy {
    /// Numbers in a register: 8 or 16.
    const LANES: usize;
    /// Most queries that a register block of the kernels holds: with two accumulators each they must fit the register file.
    const QUERIES: usize;
    /// Most queries of a register block with four accumulators each.
    const QUERIES_OF_FOUR: usize;
    /// With more queries than this a tile of a narrower element type is converted once, ahead of all of them.
    const CONVERT_ABOVE: usize;

    /// As [`Vector::QUERIES_OF_FOUR`], for sums of integer products, which need a register besides.
    const INT_QUERIES_OF_FOUR: usize;
    /// `LANES` numbers of 32 bits.
    type Ints: Copy;
    /// `2 * LANES` numbers of 16 bits.
    type Words: Copy;

    unsafe fn no_ints() -> Self::Ints;
    unsafe fn load_words(from: *const i16) -> Self::Words;
    /// `2 * LANES` bytes, extended by their signs.
    unsafe fn words_of(from: *const i8) -> Self::Words;
    /// `2 * LANES` bytes of each, extended and paired: the first half of the pairs, then the second.
    unsafe fn pairs_of(first: *const i8, second: *const i8) -> [Self::Words; 2];
    /// The two numbers from there on, in every pair.
    unsafe fn splat_pair(from: *const i16) -> Self::Words;
    /// Adds `a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]` to lane i: exact, as far as the sums fit.
    unsafe fn add_products(a: Self::Words, b: Self::Words, sum: &mut Self::Ints);
    /// The sum of the lanes of each.
    unsafe fn sum_ints(eight: [Self::Ints; 8]) -> [i32; 8];
    unsafe fn of_ints(ints: Self::Ints) -> Self;
    /// The nearest integers, ties to even, of numbers within +-32767.
    unsafe fn store_words(self, to: *mut i16);

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The lower half from memory, zeros above.
    unsafe fn load_half(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_half_f16(from: *const f16) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn load_half_bf16(from: *const bf16) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    unsafe fn load_half_i8(from: *const i8) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_half(self, to: *mut f32);
    /// Nearest, ties to even, saturating at +-65504, NaN stays NaN.
    unsafe fn store_f16(self, to: *mut f16);
    unsafe fn store_half_f16(self, to: *mut f16);
    /// Nearest, ties to even, NaN stays NaN (quiet, with the upper bits of its payload).
    unsafe fn store_bf16(self, to: *mut bf16);
    unsafe fn store_half_bf16(self, to: *mut bf16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once where the CPU can.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `sum = self.mul_add(factor, sum)`, for loops whose sums fill the register file: neither it nor a load is moved past another.
    #[inline(always)]
    unsafe fn mul_add_to(self, factor: Self, sum: &mut Self) {
        // SAFETY: the caller has the instructions.
        unsafe { *sum = self.mul_add(factor, *sum) }
    }
    unsafe fn max(self, other: Self) -> Self;
    /// Nearest integer, ties to even, of numbers below 2^22.
    unsafe fn round(self) -> Self;
    /// `self * 2^power` for integral powers of -126 to 127.
    unsafe fn times_power_of_two(self, power: Self) -> Self;
    /// `self`, but zero in the lanes where `tested < limit` (false for NaN).
    unsafe fn zero_where_less(self, tested: Self, limit: Self) -> Self;
    /// The first `count` lanes, `rest` in the others.
    unsafe fn first_or(self, count: usize, rest: f32) -> Self;
    /// The pairwise tree: lane i with i + LANES/2, and so on down to one.
    unsafe fn sum(self) -> f32;
    /// Sums of four registers, each as `sum` does it.
    unsafe fn sum_four(four: [Self; 4]) -> [f32; 4];
    /// [`Vector::sum_four`] twice, at less cost.
    unsafe fn sum_eight(first: [Self; 4], second: [Self; 4]) -> [[f32; 4]; 2];
    unsafe fn first(self) -> f32;
    unsafe fn largest(self) -> f32;
    /// Fetches a cache line into the second level: the first has too few misses in flight to keep the memory busy.
    unsafe fn prefetch(at: *const u8);
    /// Runs a kernel as a function of its own, for kernels that several others use.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    /// e^x for x <= 0, to 2 units in the last place; exactly 1 at 0 and exactly 0 below -87.3 (where `f32` would go denormal).
    ///
    /// x = n ln 2 + r with ln 2 in two parts, then the polynomial of the Cephes library's `expf` for r in +-ln(2)/2.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: only vector operations; the caller has the instructions.
        unsafe {
            let n = self.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-0.693_359_4), self);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.mul_add(r, Self::splat(coefficient));
            }
            let one = Self::splat(1.0);
            let y = p.mul_add(r.mul(r), r).add(one);
            y.times_power_of_two(n).zero_where_less(self, Self::splat(-87.3))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Simd;

    struct Exp<'a>(&'a mut [f32; 16]);

    impl Kernel for Exp<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Vector>(self) {
            for lanes in self.0.chunks_exact_mut(V::LANES) {
                // SAFETY: chunks of `LANES` numbers.
                unsafe { V::load(lanes.as_ptr()).exp().store(lanes.as_mut_ptr()) }
            }
        }
    }

    /// On what this CPU has; the tests of the operations name what it lacks. Every 1009th number of [-100, 0], so that each binade and each step of the reduction has many.
    #[test]
    fn exponential_is_accurate_to_two_units_in_the_last_place() {
        for simd in Simd::ALL.into_iter().filter(|simd| simd.is_available()) {
            let run = |mut numbers: [f32; 16]| {
                // SAFETY: the set is available.
                unsafe { simd.run(Exp(&mut numbers)) };
                numbers
            };
            let codes: Vec<u32> = ((-0.0f32).to_bits()..(-100.0f32).to_bits())
                .step_by(1009)
                .collect();
            for codes in codes.chunks_exact(16) {
                let x: [f32; 16] = std::array::from_fn(|i| f32::from_bits(codes[i]));
                for (x, found) in x.into_iter().zip(run(x)) {
                    let exact = f64::from(x).exp();
                    if x < -87.3 {
                        assert_eq!(found, 0.0, "{} exp({x})", simd.name());
                        continue;
                    }
                    let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                    let error = (f64::from(found) - exact).abs() / unit;
                    assert!(
                        error <= 2.0,
                        "{}: exp({x}) = {found}, {error} units off",
                        simd.name()
                    );
                }
            }
            let mut special = [
                0.0,
                -0.0,
                f32::NEG_INFINITY,
                f32::MIN,
                f32::NAN,
                -87.0,
                -88.0,
                -1.0,
            ]
            .repeat(2);
            special = run(std::array::from_fn(|i| special[i])).to_vec();
            assert_eq!(special[..4], [1.0, 1.0, 0.0, 0.0]);
            assert!(special[4].is_nan() && special[5] > 0.0 && special[6] == 0.0);
        }
    }
}
