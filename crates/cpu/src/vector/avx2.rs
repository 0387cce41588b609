use super::{Kernel, Vector};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Eight numbers in a `ymm` register.
#[derive(Clone, Copy)]
pub struct Avx2(pub(super) __m256);

/// 65504, the largest finite `f16`.
const MOST: f32 = 65504.0;

// SAFETY of every block below: the CPU has AVX2, FMA and F16C, and pointers are good for eight (half: four) numbers; that is what
// `Vector` demands of its callers.
impl Vector for Avx2 {
    const LANES: usize = 8;
    const QUERIES: usize = 6;
    const QUERIES_OF_FOUR: usize = 3;
    const CONVERT_ABOVE: usize = 12;

    const INT_QUERIES_OF_FOUR: usize = 2;
    type Ints = __m256i;
    type Words = __m256i;

    #[inline(always)]
    unsafe fn no_ints() -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const i16) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn words_of(from: *const i8) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn pairs_of(first: *const i8, second: *const i8) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (_mm_loadu_si128(first.cast()), _mm_loadu_si128(second.cast()));
            [
                _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)),
                _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add_products(a: __m256i, b: __m256i, sum: &mut __m256i) {
        // SAFETY: see above.
        unsafe { *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn sum_ints(eight: [__m256i; 8]) -> [i32; 8] {
        // SAFETY: see above; the steps are those of `sum_eight`, whose shuffles work on bits.
        unsafe {
            let pair = |i: usize| {
                let (a, b) = (eight[i], eight[i + 4]);
                _mm256_add_epi32(
                    _mm256_permute2x128_si256::<0x21>(a, b),
                    _mm256_blend_epi32::<0xf0>(a, b),
                )
            };
            let shuffled = |a, b| {
                let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
                [_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b)]
                    .map(|x| _mm256_castps_si256(x))
            };
            let [low, high] = shuffled(pair(0), pair(1));
            let ab = _mm256_castsi256_ps(_mm256_add_epi32(low, high));
            let [low, high] = shuffled(pair(2), pair(3));
            let cd = _mm256_castsi256_ps(_mm256_add_epi32(low, high));
            let sums = _mm256_add_epi32(
                _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(ab, cd)),
                _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(ab, cd)),
            );
            std::mem::transmute::<__m256i, [i32; 8]>(sums)
        }
    }

    #[inline(always)]
    unsafe fn of_ints(ints: __m256i) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_cvtepi32_ps(ints) })
    }

    #[inline(always)]
    unsafe fn store_words(self, to: *mut i16) {
        // SAFETY: see above.
        unsafe {
            let ints = _mm256_cvtps_epi32(self.0);
            let words = _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
            _mm_storeu_si128(to.cast(), words);
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f32) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_zextps128_ps256(_mm_loadu_ps(from)) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_half_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_zextps128_ps256(_mm_cvtph_ps(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: see above.
        Avx2(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_half_bf16(from: *const bf16) -> Self {
        // SAFETY: see above; zeros become zeros.
        Avx2(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadl_epi64(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_half_i8(from: *const i8) -> Self {
        // SAFETY: see above; zeros become zeros.
        Avx2(unsafe {
            let four = _mm_cvtsi32_si128(from.cast::<i32>().read_unaligned());
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(four))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm_storeu_ps(to, _mm256_castps256_ps128(self.0)) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(to.cast(), self.to_f16()) }
    }

    #[inline(always)]
    unsafe fn store_half_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe { _mm_storel_epi64(to.cast(), self.to_f16()) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(to.cast(), self.to_bf16()) }
    }

    #[inline(always)]
    unsafe fn store_half_bf16(self, to: *mut bf16) {
        // SAFETY: see above.
        unsafe { _mm_storel_epi64(to.cast(), self.to_bf16()) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
    }

    #[inline(always)]
    unsafe fn mul_add_to(self, factor: Self, sum: &mut Self) {
        // SAFETY: see above.
        unsafe { mul_add_to(&mut sum.0, self.0, factor.0) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, power: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power.0), _mm256_set1_epi32(127));
            _mm256_mul_ps(self.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }

    #[inline(always)]
    unsafe fn zero_where_less(self, tested: Self, limit: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(tested.0, limit.0), self.0) })
    }

    #[inline(always)]
    unsafe fn first_or(self, count: usize, rest: f32) -> Self {
        // SAFETY: see above.
        Avx2(unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let keep = _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), lane);
            _mm256_blendv_ps(_mm256_set1_ps(rest), self.0, _mm256_castsi256_ps(keep))
        })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn sum_four(four: [Self; 4]) -> [f32; 4] {
        // SAFETY: see above.
        unsafe {
            // Lane i with i + 4: a and c side by side, b and d side by side.
            let ac = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x21>(four[0].0, four[2].0),
                _mm256_blend_ps::<0xf0>(four[0].0, four[2].0),
            );
            let bd = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x21>(four[1].0, four[3].0),
                _mm256_blend_ps::<0xf0>(four[1].0, four[3].0),
            );
            // Lane i with i + 2: in each half two numbers of the first, two of the second.
            let abcd = _mm256_add_ps(
                _mm256_shuffle_ps::<0x44>(ac, bd),
                _mm256_shuffle_ps::<0xee>(ac, bd),
            );
            // Lane i with i + 1.
            let sums = _mm256_add_ps(abcd, _mm256_movehdup_ps(abcd));
            let (ab, cd) = (_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            std::mem::transmute::<__m128, [f32; 4]>(_mm_shuffle_ps::<0x88>(ab, cd))
        }
    }

    #[inline(always)]
    unsafe fn sum_eight(first: [Self; 4], second: [Self; 4]) -> [[f32; 4]; 2] {
        // SAFETY: see above.
        unsafe {
            // Lane i with i + 4: the first's in the lower half, the second's in the upper.
            let pair = |i: usize| {
                let (a, b) = (first[i].0, second[i].0);
                _mm256_add_ps(
                    _mm256_permute2f128_ps::<0x21>(a, b),
                    _mm256_blend_ps::<0xf0>(a, b),
                )
            };
            let [a, b, c, d] = [pair(0), pair(1), pair(2), pair(3)];
            // Lane i with i + 2.
            let ab = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
            let cd = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(c, d), _mm256_shuffle_ps::<0xee>(c, d));
            // Lane i with i + 1.
            let sums = _mm256_add_ps(
                _mm256_shuffle_ps::<0x88>(ab, cd),
                _mm256_shuffle_ps::<0xdd>(ab, cd),
            );
            std::mem::transmute::<__m256, [[f32; 4]; 2]>(sums)
        }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm256_cvtss_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { crate::simd::run_avx2(kernel) }
    }
}

/// As an intrinsic, of the 16 registers that the loops need LLVM keeps one in memory, at half the speed.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn mul_add_to(sum: &mut __m256, a: __m256, b: __m256) {
    // SAFETY: registers alone; that no memory is touched the compiler must not know, so as to keep the order of loads.
    unsafe {
        std::arch::asm!(
            "vfmadd231ps {sum}, {a}, {b}",
            sum = inout(ymm_reg) *sum,
            a = in(ymm_reg) a,
            b = in(ymm_reg) b,
            options(nostack, preserves_flags)
        )
    }
}

impl Avx2 {
    /// Saturating conversion. `min` and `max` give their second operand when either is NaN, so NaN passes.
    #[inline(always)]
    unsafe fn to_f16(self) -> __m128i {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_min_ps(_mm256_set1_ps(MOST), self.0);
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_max_ps(_mm256_set1_ps(-MOST), low))
        }
    }

    /// Rounds on the bits, which is exact for denormals too. A NaN keeps its upper bits and becomes quiet.
    #[inline(always)]
    unsafe fn to_bf16(self) -> __m128i {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let upper = _mm256_srli_epi32::<16>(bits);
            let half = _mm256_add_epi32(
                _mm256_set1_epi32(0x7fff),
                _mm256_and_si256(upper, _mm256_set1_epi32(1)),
            );
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            let wide = _mm256_blendv_epi8(rounded, quiet, nan);
            // Packs within each half; the numbers are below 2^16.
            let packed = _mm256_packus_epi32(wide, wide);
            _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0x08>(packed))
        }
    }
}
