//! The best k of n scores. Ties: the higher score, then the lower index.

use std::cmp::Ordering;

/// Writes the indices of the `k` best `scores` in ascending order to the beginning of `out`
/// and returns how many they are: all when `k >= scores.len()`. `out` is as long as `scores`. Scores
/// must not be NaN; where one is, it counts as the lowest.
pub fn top_k(scores: &[f32], k: usize, out: &mut [u32]) -> usize {
    let out = &mut out[..scores.len()];
    out.iter_mut().zip(0..).for_each(|(slot, index)| *slot = index);
    if k >= scores.len() {
        return scores.len();
    }
    let key = |i: u32| {
        let score = scores[i as usize];
        if score.is_nan() { f32::NEG_INFINITY } else { score }
    };
    let best_first = |a: &u32, b: &u32| -> Ordering {
        // partial_cmp, not total_cmp: 0.0 and -0.0 tie.
        key(*b)
            .partial_cmp(&key(*a))
            .unwrap_or(Ordering::Equal)
            .then(a.cmp(b))
    };
    if k > 0 {
        out.select_nth_unstable_by(k - 1, best_first);
    }
    out[..k].sort_unstable();
    k
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let best = |scores: &[f32], k| {
            let mut out = vec![0; scores.len()];
            let count = top_k(scores, k, &mut out);
            out.truncate(count);
            out
        };
        assert_eq!(best(&[1.0, 2.0, 1.0, 2.0, 1.0], 3), [0, 1, 3]);
        assert_eq!(best(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert!(best(&[1.0], 0).is_empty());
        assert_eq!(best(&[1.0, 2.0], 9), [0, 1]);
    }

    #[test]
    fn equals_a_stable_sort() {
        let scores = prop::collection::vec((0u8..6).prop_map(f32::from), 0..80);
        reasoning_rpc_test_support::property((scores, 0usize..90), |(scores, k)| {
            let mut order: Vec<u32> = (0..scores.len() as u32).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            order.truncate(k);
            order.sort_unstable();
            let mut out = vec![0; scores.len()];
            let count = top_k(&scores, k, &mut out);
            prop_assert_eq!(&out[..count], order);
            Ok(())
        });
    }
}
