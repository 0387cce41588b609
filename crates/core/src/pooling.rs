//! Local pooling of scores: stride 1, zero padding of kernel/2, as the published method pools.

use crate::schedule::OptionError;

/// How the scores of neighbouring candidates are pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Mean over the kernel; the zero padding at the ends counts in the mean.
    #[default]
    Average,
    /// Maximum over the kernel.
    Max,
    /// None: scores stay as they are.
    None,
}

impl Pooling {
    /// Pools `scores` into `out`, which is as long as `scores`. `kernel` is odd
    /// ([`check_kernel`]).
    pub fn apply(self, scores: &[f32], kernel: usize, out: &mut [f32]) {
        if self == Self::None {
            return out.copy_from_slice(scores);
        }
        let half = kernel / 2;
        for (i, pooled) in out.iter_mut().enumerate().take(scores.len()) {
            let near = &scores[i.saturating_sub(half)..(i + half + 1).min(scores.len())];
            *pooled = match self {
                Self::Average => near.iter().sum::<f32>() / kernel as f32,
                _ => near.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            };
        }
    }
}

/// A kernel must be odd, so that pooling keeps the length.
///
/// # Errors
/// `kernel` is even (0 included) or above 65,535.
pub fn check_kernel(kernel: usize) -> Result<(), OptionError> {
    if kernel.is_multiple_of(2) || kernel > 65_535 {
        return Err(OptionError(format!(
            "kernel: expected an odd width from 1 to 65535, found {kernel}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_counts_in_the_mean_and_not_in_the_maximum() {
        let mut out = [0.0; 4];
        Pooling::Average.apply(&[3.0, 6.0, 9.0, 0.0], 3, &mut out);
        assert_eq!(out, [3.0, 6.0, 5.0, 3.0]);
        Pooling::Max.apply(&[-3.0, -6.0, -9.0, -1.0], 3, &mut out);
        assert_eq!(out, [-3.0, -3.0, -1.0, -1.0]);
        Pooling::Average.apply(&[], 3, &mut []);
    }
}
