//! Intervals and tests of proportions.

/// The two-sided 95% quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's score interval, 95%, of a proportion that was found in `count` independent trials: (p + z^2 / 2n +-
/// z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). The whole of 0 to 1 without a trial.
///
/// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
pub fn wilson(proportion: f64, count: usize) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    let n = count as f64;
    let center = proportion + Z * Z / (2.0 * n);
    let spread = Z * (proportion * (1.0 - proportion) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (
        ((center - spread) / scale).max(0.0),
        ((center + spread) / scale).min(1.0),
    )
}

/// McNemar's test, exact and two-sided: how probable it is, if neither of two is better, that the pairs in which
/// they differ are split as unevenly as `only_first` to `only_second`, or more. Twice the smaller tail of a
/// binomial distribution with p = 1/2, at most 1.
///
/// Source: Q. McNemar, 1947; the exact form is the sign test.
pub fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    let least = only_first.min(only_second);
    // Logarithms, because 2^-n leaves float64 at some thousand pairs.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=least {
        tail += log_term.exp();
        log_term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// The value that half of them do not exceed; none of nothing.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(match values.len() % 2 {
        0 => (values[values.len() / 2 - 1] + upper) / 2.0,
        _ => upper,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 5e-7, "{found} {expected}");
    }

    #[test]
    fn intervals_of_known_proportions() {
        // By the quadratic whose roots the bounds are: (p - x)^2 = z^2 x (1 - x) / n.
        for (p, n) in [(0.5, 10), (0.1, 30), (0.0, 5), (1.0, 7), (0.37, 541)] {
            let (low, high) = wilson(p, n);
            for x in [low, high] {
                near((p - x) * (p - x), Z * Z * x * (1.0 - x) / n as f64);
            }
            assert!(low <= p && p <= high && low < high);
        }
        // Published examples: 0 of 10, 5 of 10.
        near(wilson(0.0, 10).1, 0.277_532_8);
        near(wilson(0.5, 10).0, 0.236_593_1);
        assert_eq!(wilson(0.5, 0), (0.0, 1.0));
    }

    #[test]
    fn the_exact_test_counts_splits() {
        assert_eq!(mcnemar(0, 0), 1.0);
        near(mcnemar(0, 5), 2.0 / 32.0);
        near(mcnemar(5, 0), 2.0 / 32.0);
        // 2 (1 + 10 + 45) / 1024
        near(mcnemar(2, 8), 112.0 / 1024.0);
        assert_eq!(mcnemar(4, 4), 1.0);
        // Against the normal approximation with continuity correction, where that is good: z = 3.13049.
        let far = mcnemar(450, 550);
        assert!((far - 0.001_744).abs() < 5e-5, "{far}");
        assert!(mcnemar(1000, 3000) < 1e-200);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
