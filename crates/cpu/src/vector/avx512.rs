use super::{Avx2, Kernel, Vector};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Sixteen numbers in a `zmm` register.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// 65504, the largest finite `f16`.
const MOST: f32 = 65504.0;

// SAFETY of every block below: the CPU has AVX-512 F, BW, VL and DQ, and pointers are good for sixteen (half: eight) numbers; that is
// what `Vector` demands of its callers.
impl Vector for Avx512 {
    const LANES: usize = 16;
    const QUERIES: usize = 6;
    const QUERIES_OF_FOUR: usize = 6;
    const CONVERT_ABOVE: usize = 12;

    const INT_QUERIES_OF_FOUR: usize = 6;
    type Ints = __m512i;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn no_ints() -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const i16) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn words_of(from: *const i8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn pairs_of(first: *const i8, second: *const i8) -> [__m512i; 2] {
        // SAFETY: see above; half of the bytes at a time.
        unsafe {
            [0, 16].map(|from| {
                let a = _mm_loadu_si128(first.add(from).cast());
                let b = _mm_loadu_si128(second.add(from).cast());
                let pairs = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
                _mm512_cvtepi8_epi16(pairs)
            })
        }
    }

    #[inline(always)]
    unsafe fn splat_pair(from: *const i16) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add_products(a: __m512i, b: __m512i, sum: &mut __m512i) {
        // SAFETY: see above.
        unsafe { *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn sum_ints(eight: [__m512i; 8]) -> [i32; 8] {
        // SAFETY: see above; AVX-512 includes AVX2.
        unsafe {
            Avx2::sum_ints(eight.map(|ints| {
                _mm256_add_epi32(_mm512_castsi512_si256(ints), _mm512_extracti64x4_epi64::<1>(ints))
            }))
        }
    }

    #[inline(always)]
    unsafe fn of_ints(ints: __m512i) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_cvtepi32_ps(ints) })
    }

    #[inline(always)]
    unsafe fn store_words(self, to: *mut i16) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(self.0))) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f32) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_zextps256_ps512(_mm256_loadu_ps(from)) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_half_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: see above.
        Avx512(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn load_half_bf16(from: *const bf16) -> Self {
        // SAFETY: see above; AVX-512 includes AVX2.
        Avx512(unsafe { _mm512_zextps256_ps512(Avx2::load_bf16(from).0) })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_half_i8(from: *const i8) -> Self {
        // SAFETY: see above; AVX-512 includes AVX2.
        Avx512(unsafe { _mm512_zextps256_ps512(Avx2::load_i8(from).0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to, _mm512_castps512_ps256(self.0)) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), self.to_f16()) }
    }

    #[inline(always)]
    unsafe fn store_half_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(self.to_f16())) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), self.to_bf16()) }
    }

    #[inline(always)]
    unsafe fn store_half_bf16(self, to: *mut bf16) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(self.to_bf16())) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, power: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_scalef_ps(self.0, power.0) })
    }

    #[inline(always)]
    unsafe fn zero_where_less(self, tested: Self, limit: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe {
            // "Not less than" is true for NaN.
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(tested.0, limit.0);
            _mm512_maskz_mov_ps(keep, self.0)
        })
    }

    #[inline(always)]
    unsafe fn first_or(self, count: usize, rest: f32) -> Self {
        let keep = if count < 16 { (1u16 << count) - 1 } else { u16::MAX };
        // SAFETY: see above.
        Avx512(unsafe { _mm512_mask_mov_ps(_mm512_set1_ps(rest), keep, self.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_add_ps(
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            );
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn sum_four(four: [Self; 4]) -> [f32; 4] {
        // SAFETY: see above; AVX-512 includes AVX2.
        unsafe { Avx2::sum_four(Self::folded_four(four)) }
    }

    #[inline(always)]
    unsafe fn sum_eight(first: [Self; 4], second: [Self; 4]) -> [[f32; 4]; 2] {
        // SAFETY: see above; AVX-512 includes AVX2.
        unsafe { Avx2::sum_eight(Self::folded_four(first), Self::folded_four(second)) }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_cvtss_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_max_ps(
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            );
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
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
        unsafe { crate::simd::run_avx512(kernel) }
    }
}

impl Avx512 {
    /// Lane i plus lane i + 8.
    #[inline(always)]
    unsafe fn folded(self) -> Avx2 {
        // SAFETY: see above.
        Avx2(unsafe {
            _mm256_add_ps(
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            )
        })
    }

    #[inline(always)]
    unsafe fn folded_four([a, b, c, d]: [Self; 4]) -> [Avx2; 4] {
        // SAFETY: see above.
        unsafe { [a.folded(), b.folded(), c.folded(), d.folded()] }
    }

    /// Saturating conversion. `min` and `max` give their second operand when either is NaN, so NaN passes.
    #[inline(always)]
    unsafe fn to_f16(self) -> __m256i {
        // SAFETY: see above.
        unsafe {
            let low = _mm512_min_ps(_mm512_set1_ps(MOST), self.0);
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_max_ps(_mm512_set1_ps(-MOST), low))
        }
    }

    /// Rounds on the bits, which is exact for denormals too. A NaN keeps its upper bits and becomes quiet.
    #[inline(always)]
    unsafe fn to_bf16(self) -> __m256i {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let upper = _mm512_srli_epi32::<16>(bits);
            let half = _mm512_add_epi32(
                _mm512_set1_epi32(0x7fff),
                _mm512_and_si512(upper, _mm512_set1_epi32(1)),
            );
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let wide = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
            _mm512_cvtepi32_epi16(wide)
        }
    }
}
