//! The exponential function in plain arithmetic: the same bits on every machine, whatever its mathematics
//! library, and free of branches, so that compilers vectorise it.

const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// ln 2 in two parts; the upper one has so few digits that small multiples of it are exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Added to a small number, it leaves the nearest integer in the lowest bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// Below this the result is 0: a probability that no draw of 53 bits meets.
const LEAST: f64 = -700.0;

/// `e^x` for `x` up to 0, within 2 units in the last place; 0 below -700 and for minus infinity.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let bounded = if x < LEAST { LEAST } else { x };
    let rounded = bounded * LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = (bounded - power * LN2_HIGH) - power * LN2_LOW;
    // Taylor's series; |r| <= ln(2)/2, so the first term left out is below 5e-18.
    let mut sum = 1.0 / 6_227_020_800.0;
    for factorial in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        sum = sum * r + 1.0 / factorial;
    }
    // The integer in the lowest bits of `rounded`, moved to where the exponent is.
    let scale = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    if x < LEAST { 0.0 } else { sum * scale }
}

/// The same in float32: its relative error is below 2e-7 times `max(1, -x)`; 0 below -87.
#[inline(always)]
pub(super) fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -87.0;
    let bounded = if x < LEAST { LEAST } else { x };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = (bounded - power * 0.693_359_4) + power * 2.121_944_4e-4;
    let mut sum = 1.0 / 5_040.0;
    for factorial in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * r + 1.0 / factorial;
    }
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < LEAST { 0.0 } else { sum * scale }
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_f32};

    #[test]
    fn in_float32_it_is_close() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_f32(x)) - expected).abs() / expected;
            assert!(
                error <= 2e-7 * f64::from(x.abs()).max(1.0),
                "exp_f32({x}): {error}"
            );
        }
    }

    #[test]
    fn agrees_with_the_library() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-700.5), 0.0);
        for step in 0..700_000 {
            let x = -f64::from(step) * 0.001;
            let expected = x.exp();
            assert!(
                (exp(x) - expected).abs() <= 4.0 * f64::EPSILON * expected,
                "exp({x})"
            );
        }
    }
}
