//! What policies keep and write, from the formulas in float64.

use std::collections::HashMap;

use reasoning_rpc_core::{PolicyKind, Pooling, RpcOptions, Similarity, Softmax};

pub(super) const P: usize = 24;
pub(super) const R: usize = 6;

/// All that a compression of one KV head depends on.
pub(super) struct Before {
    pub(super) positions: Vec<u32>,
    pub(super) keys: Vec<Vec<f64>>,
    pub(super) values: Vec<Vec<f64>>,
    pub(super) history: Vec<f64>,
    /// Of the remembered tokens, oldest first, of each query head of this KV head.
    pub(super) queries: Vec<Vec<Vec<f64>>>,
    /// Text positions of these tokens.
    pub(super) asked_from: Vec<u32>,
    pub(super) frequencies: Vec<f64>,
    /// Entries that may be dropped.
    pub(super) candidates: Vec<usize>,
}

/// What the formulas make of it, for each candidate.
pub(super) struct After {
    pub(super) scores: Vec<f64>,
    pub(super) kept: Vec<usize>,
    pub(super) history: Vec<f64>,
    pub(super) keys: Vec<Vec<f64>>,
    pub(super) values: Vec<Vec<f64>>,
    /// What was added up online.
    pub(super) raw: Vec<f64>,
    /// How much more similar what is merged is to what it goes into than to the next one, at least.
    pub(super) margin: f64,
}

pub(super) fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().copied().map(f64::from).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The attention of a query over the entries from position 0 to its own, or over all.
fn attention(before: &Before, query: &[f64], up_to: Option<u32>) -> Vec<f64> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let weights: Vec<f64> = before
        .keys
        .iter()
        .zip(&before.positions)
        .map(|(key, &position)| match up_to {
            Some(last) if position > last => 0.0,
            _ => (dot(query, key) * scale).exp(),
        })
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// sum over the window of a(q, i), mean over the query heads, of the candidates.
pub(super) fn window_attention(before: &Before) -> Vec<f64> {
    let mut sums = vec![0.0; before.keys.len()];
    for (heads, &position) in before.queries.iter().zip(&before.asked_from) {
        for query in heads {
            let weights = attention(before, query, Some(position));
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight / heads.len() as f64;
            }
        }
    }
    before.candidates.iter().map(|&entry| sums[entry]).collect()
}

fn pooled(scores: &[f64], average: bool) -> Vec<f64> {
    (0..scores.len() as i64)
        .map(|i| {
            let near = (i - 3..=i + 3).filter_map(|j| usize::try_from(j).ok().and_then(|j| scores.get(j)));
            match average {
                true => near.sum::<f64>() / 7.0,
                false => near.copied().fold(0.0, f64::max),
            }
        })
        .collect()
}

/// Higher scores first, then lower indices; in order.
pub(super) fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

fn rotated_on(query: &[f64], positions: f64, frequencies: &[f64]) -> Vec<f64> {
    let half = query.len() / 2;
    let mut out = query.to_vec();
    for (pair, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = (positions * frequency).sin_cos();
        out[pair] = query[pair] * cos - query[pair + half] * sin;
        out[pair + half] = query[pair + half] * cos + query[pair] * sin;
    }
    out
}

/// Gauss's elimination with pivots.
pub(super) fn solved(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))
            .unwrap();
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in 0..n {
            if row != column {
                let factor = matrix[row][column] / matrix[column][column];
                let above = matrix[column].clone();
                matrix[row]
                    .iter_mut()
                    .zip(above)
                    .for_each(|(x, y)| *x -= factor * y);
                right[row] -= factor * right[column];
            }
        }
    }
    (0..n).map(|row| right[row] / matrix[row][row]).collect()
}

/// How near copies count against an entry: softmax of the mean cosine, normalised to a maximum of 1.
fn redundancy(before: &Before) -> Vec<f64> {
    let key = |candidate: usize| &before.keys[before.candidates[candidate]];
    let count = before.candidates.len();
    let norm = |c: usize| dot(key(c), key(c)).sqrt();
    let mut cosines: Vec<Vec<f64>> = (0..count)
        .map(|a| {
            (0..count)
                .map(|b| dot(key(a), key(b)) / norm(a) / norm(b))
                .collect()
        })
        .collect();
    for (row, cosines) in cosines.iter_mut().enumerate() {
        cosines[row] = 0.0;
        if let Some(recent) = cosines.iter().rposition(|&cosine| cosine > 0.5) {
            cosines[recent] = 0.0;
        }
    }
    let mean = |c: usize| cosines.iter().map(|row| row[c]).sum::<f64>() / count as f64;
    normalised((0..count).map(|c| mean(c).exp()).collect())
}

fn normalised(mut values: Vec<f64>) -> Vec<f64> {
    let most = values.iter().copied().fold(0.0, f64::max);
    values.iter_mut().for_each(|x| *x /= most);
    values
}

/// rpc with options that go beyond the paper, one set per KV head.
fn weighted(options: &RpcOptions, before: &Before, after: &mut After) {
    let history = f64::from(options.history.unwrap_or(0.0));
    let mut scores = match options.softmax {
        Softmax::All => window_attention(before),
        Softmax::Candidates => {
            let only = Before {
                keys: before
                    .candidates
                    .iter()
                    .map(|&e| before.keys[e].clone())
                    .collect(),
                positions: before.candidates.iter().map(|&e| before.positions[e]).collect(),
                candidates: (0..before.candidates.len()).collect(),
                values: Vec::new(),
                history: Vec::new(),
                queries: before.queries.clone(),
                asked_from: before.asked_from.clone(),
                frequencies: Vec::new(),
            };
            window_attention(&only)
        }
    };
    for (score, &entry) in scores.iter_mut().zip(&before.candidates) {
        *score += history * before.history[entry];
    }
    if history > 0.0 {
        after.history.clone_from(&scores);
    }
    if options.value_norms {
        for (score, &entry) in scores.iter_mut().zip(&before.candidates) {
            *score *= before.values[entry].iter().map(|x| x.abs()).sum::<f64>();
        }
    }
    after.scores = match options.pooling {
        Pooling::None => scores,
        pooling => pooled(&scores, pooling == Pooling::Average),
    };
    if options.redundancy > 0.0 {
        let w = f64::from(options.redundancy);
        let scores = normalised(std::mem::take(&mut after.scores));
        let both = scores.iter().zip(redundancy(before));
        after.scores = both.map(|(s, r)| (1.0 - w) * s - w * r).collect();
    }
}

pub(super) fn reference(options: &RpcOptions, kind: PolicyKind, before: &Before, keep: usize) -> After {
    let count = before.candidates.len();
    let key = |candidate: usize| &before.keys[before.candidates[candidate]];
    let mut after = After {
        scores: vec![0.0; count],
        kept: Vec::new(),
        history: vec![0.0; count],
        keys: (0..count).map(|c| key(c).clone()).collect(),
        values: before
            .candidates
            .iter()
            .map(|&entry| before.values[entry].clone())
            .collect(),
        raw: Vec::new(),
        margin: f64::INFINITY,
    };
    match kind {
        PolicyKind::Streaming => {
            after.scores = (0..count).map(|c| if c < 4 { 1e9 } else { c as f64 }).collect();
        }
        PolicyKind::Rpc => weighted(options, before, &mut after),
        PolicyKind::SnapKv => after.scores = pooled(&window_attention(before), true),
        PolicyKind::RKv => {
            let importance = pooled(&window_attention(before), false);
            let importance = normalised(importance);
            let both = importance.iter().zip(redundancy(before));
            after.scores = both.map(|(i, r)| 0.1 * i - 0.9 * r).collect();
        }
        PolicyKind::Lookahead | PolicyKind::LookaheadMerge => {
            let queries: Vec<Vec<f64>> = before
                .queries
                .iter()
                .flatten()
                .map(|query| rotated_on(query, P as f64, &before.frequencies))
                .collect();
            let mut sums = vec![0.0; before.keys.len()];
            for query in &queries {
                for (sum, weight) in sums.iter_mut().zip(attention(before, query, None)) {
                    *sum += weight / queries.len() as f64;
                }
            }
            let history = options.history.map_or(0.6, f64::from);
            let of = |&entry: &usize| sums[entry] + history * before.history[entry];
            after.scores = before.candidates.iter().map(of).collect();
            after.history = after.scores.clone();
            if kind == PolicyKind::LookaheadMerge {
                merge(before, &queries, options.similarity, keep, &mut after);
            }
        }
        other => panic!("no reference of {other:?}"),
    }
    after.kept = best(&after.scores, keep);
    after
}

/// The same while the queries are asked as they attend. `carried` is what the last plan set, by position.
pub(super) fn online_reference(
    options: &RpcOptions,
    kind: PolicyKind,
    before: &Before,
    carried: &HashMap<u32, f64>,
    keep: usize,
) -> After {
    let count = before.queries.len();
    let mut sums = vec![0.0; before.keys.len()];
    let (mut queries, mut asked_from) = (Vec::new(), Vec::new());
    let interval = before.queries.iter().zip(&before.asked_from).skip(count - P);
    for (heads, &position) in interval {
        asked_from.push(position);
        for query in heads {
            let query = rotated_on(query, P as f64, &before.frequencies);
            let weights = attention(before, &query, Some(position));
            let mean = (P * heads.len()) as f64;
            sums.iter_mut()
                .zip(weights)
                .for_each(|(sum, weight)| *sum += weight / mean);
            queries.push(query);
        }
    }
    let of = |&entry: &usize| sums[entry] + carried.get(&before.positions[entry]).unwrap_or(&0.0);
    let raw: Vec<f64> = before.candidates.iter().map(of).collect();
    // The mean over the queries that saw it, in place of all.
    let seen = |&entry: &usize| {
        asked_from
            .iter()
            .filter(|&&p| p >= before.positions[entry])
            .count()
    };
    // From what was found, once it was compared: a merge divides by sums, which makes more of what they are off.
    let all = before
        .candidates
        .iter()
        .map(|entry| (entry, &before.history[*entry]));
    let scores: Vec<f64> = all
        .map(
            |(entry, sum)| match before.positions[*entry] >= before.asked_from[count - P] {
                true => sum * P as f64 / seen(entry) as f64,
                false => *sum,
            },
        )
        .collect();
    let rows = |rows: &[Vec<f64>]| {
        before
            .candidates
            .iter()
            .map(|&entry| rows[entry].clone())
            .collect()
    };
    let mut after = After {
        kept: best(&scores, keep),
        history: scores.clone(),
        keys: rows(&before.keys),
        values: rows(&before.values),
        scores,
        raw,
        margin: f64::INFINITY,
    };
    if kind == PolicyKind::LookaheadMerge {
        merge(before, &queries, options.similarity, keep, &mut after);
    }
    after.history.iter_mut().for_each(|score| *score *= 0.6);
    after
}

fn merge(before: &Before, queries: &[Vec<f64>], similarity: Similarity, keep: usize, after: &mut After) {
    let kept = best(&after.scores, keep);
    let n = queries[0].len();
    let scale = 1.0 / (n as f64).sqrt();
    let mean = |of: &dyn Fn(&[f64]) -> f64| queries.iter().map(|q| of(q)).sum::<f64>() / queries.len() as f64;
    let mu: Vec<f64> = (0..n).map(|i| mean(&|q| q[i] * scale)).collect();
    let moments = |about: &[f64]| -> Vec<Vec<f64>> {
        let of = |i: usize, j: usize| mean(&|q| (q[i] * scale - about[i]) * (q[j] * scale - about[j]));
        let mut c: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| of(i, j)).collect()).collect();
        let trace: f64 = (0..n).map(|i| c[i][i]).sum();
        (0..n).for_each(|i| c[i][i] += 0.1 * trace / n as f64);
        c
    };
    let u = solved(moments(&vec![0.0; n]), mu.clone());
    let covariance = moments(&mu);
    let key = |candidate: usize| &before.keys[before.candidates[candidate]];
    let similar = |a: usize, b: usize| match similarity {
        Similarity::Cosine => dot(key(a), key(b)) / (dot(key(a), key(a)) * dot(key(b), key(b))).sqrt(),
        Similarity::Logits => {
            let x: Vec<f64> = key(a).iter().zip(key(b)).map(|(a, b)| a - b).collect();
            -covariance
                .iter()
                .zip(&x)
                .map(|(row, y)| dot(row, &x) * y)
                .sum::<f64>()
        }
    };
    let mut joined = vec![Vec::new(); after.scores.len()];
    for j in (0..after.scores.len()).filter(|j| !kept.contains(j)) {
        let mut nearest = kept.clone();
        nearest.sort_by(|a, b| similar(j, *b).total_cmp(&similar(j, *a)));
        if let [first, second, ..] = nearest[..] {
            after.margin = after.margin.min(similar(j, first) - similar(j, second));
        }
        joined[nearest[0]].push(j);
    }
    for &i in &kept {
        let s = |c: usize| after.scores[c];
        let all = s(i) + joined[i].iter().map(|&j| s(j)).sum::<f64>();
        let value = |c: usize| &before.values[before.candidates[c]];
        after.values[i] = (0..n)
            .map(|d| (s(i) * value(i)[d] + joined[i].iter().map(|&j| s(j) * value(j)[d]).sum::<f64>()) / all)
            .collect();
        let rise = (all / s(i)).ln().min(3.0) / dot(&mu, &u);
        after.keys[i].iter_mut().zip(&u).for_each(|(x, u)| *x += rise * u);
        after.history[i] = all;
    }
}

/// How many each KV head of a layer keeps, by the scores of each; none where two are so near that float32 may take either.
pub(super) fn shared_out(scores: &[Vec<f64>], keep: usize) -> Option<Vec<usize>> {
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (head, scores) in scores.iter().enumerate() {
        all.extend(scores.iter().map(|&score| (score, head)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best = (keep * scores.len()).min(all.len());
    if best < all.len() && all[best - 1].0 - all[best].0 < 1e-6 {
        return None;
    }
    let mut sums = Vec::new();
    for heads in 1..=scores.len() {
        let theirs = all[..best].iter().filter(|(_, head)| *head < heads).count();
        let alike: usize = scores[..heads].iter().map(|scores| keep.min(scores.len())).sum();
        sums.push(((theirs as f64) * 0.8 + (alike as f64) * 0.2 + 1e-9).floor() as usize);
    }
    let before = std::iter::once(0).chain(sums.iter().copied());
    let counts = sums.iter().zip(before).map(|(sum, before)| sum - before);
    Some(
        counts
            .zip(scores)
            .map(|(count, scores)| count.min(scores.len()))
            .collect(),
    )
}
