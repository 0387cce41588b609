//! Every numeric operation once more, plainly and in float64: what the fast ones are compared with.

/// Scores of one KV head's candidates by [`ScoreRule::WindowOverCandidates`](crate::ScoreRule).
///
/// `queries` `[count][head_dim]`: the rotated queries of the window's tokens, of all `group` query
/// heads of this KV head, in any order. `keys` `[candidates][head_dim]`: rotated keys. Returns one
/// score per candidate.
pub fn score(queries: &[f32], keys: &[f32], head_dim: usize, group: usize) -> Vec<f32> {
    let scale = 1.0 / (head_dim as f64).sqrt();
    let mut sums = vec![0.0f64; keys.len() / head_dim];
    for query in queries.chunks_exact(head_dim) {
        let logits: Vec<f64> = keys
            .chunks_exact(head_dim)
            .map(|key| dot(query, key) * scale)
            .collect();
        for (sum, weight) in sums.iter_mut().zip(softmax(&logits)) {
            *sum += weight;
        }
    }
    sums.iter().map(|sum| (sum / group as f64) as f32).collect()
}

/// Attention of one query over `entries` keys and values, each `[entries][head_dim]`.
pub fn attend(query: &[f32], keys: &[f32], values: &[f32], scale: f32) -> Vec<f32> {
    let head_dim = query.len();
    let logits: Vec<f64> = keys
        .chunks_exact(head_dim)
        .map(|key| dot(query, key) * f64::from(scale))
        .collect();
    let mut out = vec![0.0f64; head_dim];
    for (weight, value) in softmax(&logits).into_iter().zip(values.chunks_exact(head_dim)) {
        for (sum, element) in out.iter_mut().zip(value) {
            *sum += weight * f64::from(*element);
        }
    }
    out.into_iter().map(|sum| sum as f32).collect()
}

/// Compaction through a copy: the rows `kept` of `entries` `[n][row]`, in order.
pub fn gather<T: Copy>(entries: &[T], row: usize, kept: &[usize]) -> Vec<T> {
    kept.iter()
        .flat_map(|&index| entries[index * row..(index + 1) * row].iter().copied())
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}
