//! The best k of n scores. Ties: the higher score, then the lower index.

use std::cmp::Ordering;

/// Writes the indices of the `k` best `scores` in ascending order to `out`. All of them when
/// `k >= scores.len()`. Scores must not be NaN; where one is, it counts as the lowest.
pub fn top_k(scores: &[f32], k: usize, out: &mut Vec<u32>) {
    out.clear();
    out.extend(0..scores.len() as u32);
    if k >= scores.len() {
        return;
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
    out.truncate(k);
    out.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let mut out = Vec::new();
        top_k(&[1.0, 2.0, 1.0, 2.0, 1.0], 3, &mut out);
        assert_eq!(out, [0, 1, 3]);
        top_k(&[0.0, -0.0, 0.0], 2, &mut out);
        assert_eq!(out, [0, 1]);
        top_k(&[1.0], 0, &mut out);
        assert!(out.is_empty());
        top_k(&[1.0, 2.0], 9, &mut out);
        assert_eq!(out, [0, 1]);
    }

    #[test]
    fn equals_a_stable_sort() {
        let scores = prop::collection::vec((0u8..6).prop_map(f32::from), 0..80);
        reasoning_rpc_test_support::property((scores, 0usize..90), |(scores, k)| {
            let mut order: Vec<u32> = (0..scores.len() as u32).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            order.truncate(k);
            order.sort_unstable();
            let mut out = Vec::new();
            top_k(&scores, k, &mut out);
            prop_assert_eq!(out, order);
            Ok(())
        });
    }
}
