//! Policies that look ahead, against their definition in float64, written straight from the formulas.
#![allow(unsafe_code)]

mod common;

use common::*;
use reasoning_rpc_compressor::*;
use reasoning_rpc_core::{Budget, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const GROUP: usize = HEADS / KV_HEADS;
const HEAD_DIM: usize = 16;
const ROTATED: usize = 12;
const INTERVAL: usize = 20;
const WINDOW: usize = 3;
const KEPT: usize = 10;
/// Length, prompt, compressions before: nothing is new to the first; the third has no candidates.
const SEQUENCES: [[i32; 3]; 3] = [[45, 9, 1], [30, 4, 0], [3, 1, 0]];

fn frequencies() -> Vec<f32> {
    (0..ROTATED / 2).map(|i| 0.1f32.powi(i as i32)).collect()
}

fn compressor(merges: bool, style: RotaryStyle, dtype: Dtype) -> Compressor {
    let rpc = RpcOptions {
        interval: INTERVAL,
        window: WINDOW,
        budget: Budget::Entries(KEPT),
        ..RpcOptions::default()
    };
    let mut options = options(HEADS, KV_HEADS, HEAD_DIM, dtype, rpc);
    let inv_freq = frequencies();
    options.selection = Selection::Lookahead {
        merges,
        rotary: Rotary { inv_freq, style },
    };
    options.recorded_layers = 1;
    options.recorded_sequences = SEQUENCES.len();
    Compressor::new(&options).unwrap()
}

/// One KV head of a sequence, before or after a compression, as float64.
#[derive(Clone)]
struct Head {
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    history: Vec<f64>,
}

fn wide(numbers: Vec<f32>) -> Vec<f64> {
    numbers.into_iter().map(f64::from).collect()
}

fn read(host: &Host, sequence: usize, kv_head: usize) -> Head {
    let part = |part: usize| -> Vec<Vec<f64>> {
        (0..host.lengths[sequence] as usize)
            .map(|entry| wide(numbers(host.dtype, &host.get(part, [sequence, kv_head, entry]))))
            .collect()
    };
    Head {
        keys: part(0),
        values: part(1),
        history: wide(host.histories(sequence, kv_head)),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn rotated_on(query: &[f64], style: RotaryStyle) -> Vec<f64> {
    let mut out = query.to_vec();
    for (i, frequency) in frequencies().into_iter().enumerate() {
        let (a, b) = match style {
            RotaryStyle::HalfSplit => (i, i + ROTATED / 2),
            RotaryStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = (INTERVAL as f64 * f64::from(frequency)).sin_cos();
        (out[a], out[b]) = (query[a] * cos - query[b] * sin, query[b] * cos + query[a] * sin);
    }
    out
}

/// Scores of the candidates, from the first behind the prompt.
fn scores(head: &Head, queries: &[Vec<f64>], prompt: usize) -> Vec<f64> {
    let mut sums = vec![0.0; head.keys.len()];
    for query in queries {
        let weights: Vec<f64> = head
            .keys
            .iter()
            .map(|key| (dot(query, key) / (HEAD_DIM as f64).sqrt()).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += weight / total / queries.len() as f64;
        }
    }
    (prompt..head.keys.len() - WINDOW)
        .map(|entry| sums[entry] + 0.6 * head.history[entry])
        .collect()
}

/// Gauss-Jordan.
fn solved(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n)
            .max_by(|x, y| a[*x][i].abs().total_cmp(&a[*y][i].abs()))
            .unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        for j in (0..n).filter(|&j| j != i) {
            let factor = a[j][i] / a[i][i];
            let row = a[i].clone();
            a[j].iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
            b[j] -= factor * b[i];
        }
    }
    (0..n).map(|i| b[i] / a[i][i]).collect()
}

/// What a KV head is afterwards, if `kept` stays, and how many entries were merged.
fn compressed(head: &Head, queries: &[Vec<f64>], prompt: usize, kept: &[u32], merges: bool) -> (Head, usize) {
    let scores = scores(head, queries, prompt);
    let (mut keys, mut values, mut history) = (head.keys.clone(), head.values.clone(), vec![]);
    let mut joined = vec![vec![]; scores.len()];
    let key = |candidate: usize| &head.keys[prompt + candidate];
    if merges {
        let count = queries.len() as f64;
        let scale = 1.0 / (HEAD_DIM as f64).sqrt();
        let mean = |of: &dyn Fn(&[f64]) -> f64| queries.iter().map(|q| of(q)).sum::<f64>() / count;
        let mu: Vec<f64> = (0..HEAD_DIM).map(|i| mean(&|q| q[i] * scale)).collect();
        let moments = |about: &[f64]| -> Vec<Vec<f64>> {
            let of = |i: usize, j: usize| mean(&|q| (q[i] * scale - about[i]) * (q[j] * scale - about[j]));
            let mut c: Vec<Vec<f64>> = (0..HEAD_DIM)
                .map(|i| (0..HEAD_DIM).map(|j| of(i, j)).collect())
                .collect();
            let trace: f64 = (0..HEAD_DIM).map(|i| c[i][i]).sum();
            (0..HEAD_DIM).for_each(|i| c[i][i] += 0.1 * trace / HEAD_DIM as f64);
            c
        };
        let u = solved(moments(&[0.0; HEAD_DIM]), mu.clone());
        let covariance = moments(&mu);
        let apart = |a: usize, b: usize| {
            let x: Vec<f64> = key(a).iter().zip(key(b)).map(|(a, b)| a - b).collect();
            covariance
                .iter()
                .zip(&x)
                .map(|(row, y)| dot(row, &x) * y)
                .sum::<f64>()
        };
        for dropped in (0..scores.len()).filter(|i| !kept.contains(&(*i as u32))) {
            let kept = kept.iter().map(|&i| i as usize);
            let into = kept.min_by(|&a, &b| apart(dropped, a).total_cmp(&apart(dropped, b)));
            joined[into.unwrap()].push(dropped);
        }
        for &i in kept {
            let (i, members) = (i as usize, &joined[i as usize]);
            if members.is_empty() {
                continue;
            }
            let all = scores[i] + members.iter().map(|&j| scores[j]).sum::<f64>();
            let rise = (all / scores[i]).ln().min(3.0) / dot(&mu, &u);
            for d in 0..HEAD_DIM {
                let sum: f64 = members
                    .iter()
                    .map(|&j| scores[j] * head.values[prompt + j][d])
                    .sum();
                values[prompt + i][d] = (scores[i] * head.values[prompt + i][d] + sum) / all;
                keys[prompt + i][d] += rise * u[d];
            }
        }
    }
    let window = head.keys.len() - WINDOW..head.keys.len();
    let stays: Vec<usize> = (0..prompt)
        .chain(kept.iter().map(|&i| prompt + i as usize))
        .chain(window)
        .collect();
    for &entry in &stays {
        let candidate = entry.wrapping_sub(prompt);
        history.push(match scores.get(candidate) {
            Some(own) => own + joined[candidate].iter().map(|&j| scores[j]).sum::<f64>(),
            None => head.history[entry],
        });
    }
    let of = |rows: &[Vec<f64>]| stays.iter().map(|&entry| rows[entry].clone()).collect();
    let after = Head {
        keys: of(&keys),
        values: of(&values),
        history,
    };
    (after, joined.iter().map(Vec::len).sum())
}

/// Sequences with histories, as after a compression: 0 in the prompt, in the window and behind.
fn host(place: Place, dtype: Dtype, random: &mut Random) -> Host {
    let mut host = Host::new(place, (KV_HEADS, HEAD_DIM, dtype), &SEQUENCES, random);
    host.fill(random);
    for (sequence, [length, prompt, done]) in SEQUENCES.into_iter().enumerate() {
        for kv_head in 0..KV_HEADS {
            for entry in prompt..(length - WINDOW as i32).min(prompt + done * KEPT as i32) {
                host.set_history([sequence, kv_head, entry as usize], random.number().abs() / 8.0);
            }
        }
    }
    host
}

fn compare(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    for (found, expected) in found.iter().zip(expected) {
        let allowed = tolerance * (1.0 + expected.abs());
        assert!(
            (found - expected).abs() <= allowed,
            "{what}: {found}, expected {expected}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

fn check(merges: bool, style: RotaryStyle, dtype: Dtype, place: Place, recorded: bool) {
    let mut random = Random::new(seed());
    let what = format!("{merges} {style:?} {dtype:?} {place:?}");
    let compressor = compressor(merges, style, dtype);
    let mut host = host(place, dtype, &mut random);
    // Blocks that the first sequence writes are shared.
    if place != Place::Dense {
        host.shared = host.table[..host.columns].to_vec();
    }
    // The interval's tokens, oldest first.
    let width = HEADS * HEAD_DIM;
    let queries = random_numbers(&mut random, SEQUENCES.len() * INTERVAL * width);
    let window = match recorded {
        true => {
            for token in 0..INTERVAL {
                let row = queries[token * width..].as_ptr().cast();
                let (slots, head) = ((INTERVAL * width) as i64, HEAD_DIM as i64);
                // SAFETY: one token's queries of each slot.
                unsafe { compressor.record(0, None, SEQUENCES.len(), row, slots, head, Dtype::F32) }.unwrap();
            }
            Window::Recorded { slots: None }
        }
        false => ring(&queries, HEADS, HEAD_DIM, INTERVAL, None),
    };
    let before: Vec<Vec<Head>> = (0..SEQUENCES.len())
        .map(|sequence| (0..KV_HEADS).map(|h| read(&host, sequence, h)).collect())
        .collect();
    let shared: Vec<_> = host.shared.iter().map(|&id| (id, host.block(id))).collect();
    let mut memory = Memory::new(&compressor, &host.batch());
    let layer = host.layer(0);
    // SAFETY: the host's memory is what it says.
    let plan = unsafe { compressor.plan(&layer, &host.batch(), &window, memory.workspace()) }.unwrap();
    for (sequence, heads) in before.iter().enumerate() {
        for (kv_head, head) in heads.iter().enumerate() {
            let now = read(&host, sequence, kv_head);
            assert!(
                now.keys == head.keys && now.history == head.history,
                "a plan has written"
            );
        }
    }
    // SAFETY: as above.
    unsafe { compressor.apply(&layer, &host.batch(), &plan, memory.workspace()) }.unwrap();
    let plan_kept = plan.kept.to_vec();
    let (merge_count, counts) = (plan.merges.len(), plan.kept_counts.to_vec());
    host.adopt(&plan);
    for (id, bytes) in shared {
        assert_eq!(host.block(id), bytes, "{what}: a shared block was written");
    }
    assert_eq!(counts, [KEPT as u32, KEPT as u32, 0]);
    let mut sets = plan_kept.chunks_exact(KEPT);
    let mut merged = 0;
    for (sequence, [length, prompt, _]) in SEQUENCES.into_iter().enumerate().take(2) {
        let prompt = prompt as usize;
        for (kv_head, head) in before[sequence].iter().enumerate() {
            let what = format!("{what} {sequence} {kv_head}");
            let asked: Vec<Vec<f64>> = (0..INTERVAL)
                .flat_map(|token| (kv_head * GROUP..(kv_head + 1) * GROUP).map(move |h| (token, h)))
                .map(|(token, h)| {
                    let at = (sequence * INTERVAL + token) * width + h * HEAD_DIM;
                    rotated_on(&wide(queries[at..at + HEAD_DIM].to_vec()), style)
                })
                .collect();
            let kept = sets.next().unwrap();
            let scores = scores(head, &asked, prompt);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            // float32 may swap what is as good as equal.
            let worst = scores[order[KEPT - 1]];
            assert!(kept.iter().all(|&i| scores[i as usize] >= worst - 1e-6), "{what}");
            let (expected, count) = compressed(head, &asked, prompt, kept, merges);
            merged += count;
            let found = read(&host, sequence, kv_head);
            // float32's rounding where it moves and scores; the format's where it is merged, of int8 half a step, of which the
            // largest of the row has 127.
            let rounding = |row: &[f64]| match dtype {
                _ if !merges => 0.0,
                Dtype::F32 => 1e-4,
                Dtype::F16 => 1e-3,
                Dtype::Bf16 => 8e-3,
                Dtype::I8 => row.iter().fold(0.0, |most: f64, x| most.max(x.abs())) / 254.0 + 1e-4,
            };
            for entry in 0..expected.keys.len() {
                let (key, value) = (&expected.keys[entry], &expected.values[entry]);
                compare(&what, &found.keys[entry], key, rounding(key));
                compare(&what, &found.values[entry], value, rounding(value));
            }
            compare(&what, &found.history, &expected.history, 1e-5);
            assert_eq!(found.keys.len(), length as usize - (scores.len() - KEPT));
            // What was vacated is as new.
            let last = found.keys.len().next_multiple_of(host.block_entries);
            let end = if place == Place::Dense {
                length as usize
            } else {
                last.min(length as usize)
            };
            for entry in found.keys.len()..end {
                assert_eq!(host.history([sequence, kv_head, entry]), 0.0, "{what}");
            }
        }
    }
    assert_eq!(merge_count, merged, "{what}");
}

fn check_all(merges: bool) {
    for style in [RotaryStyle::HalfSplit, RotaryStyle::Interleaved] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8] {
            for place in PLACES {
                check(merges, style, dtype, place, false);
            }
        }
    }
}

#[test]
fn what_the_next_interval_will_look_at_stays() {
    check_all(false);
    check(false, RotaryStyle::HalfSplit, Dtype::F32, Place::HeadMajor, true);
}

#[test]
fn the_dropped_are_merged_into_the_kept() {
    check_all(true);
    check(
        true,
        RotaryStyle::Interleaved,
        Dtype::F16,
        Place::TokenMajor,
        true,
    );
}

#[test]
fn compress_is_plan_and_apply() {
    let mut random = Random::new(seed());
    let compressor = compressor(true, RotaryStyle::HalfSplit, Dtype::F16);
    let mut one = host(Place::TokenMajor, Dtype::F16, &mut random);
    let mut other = one.clone();
    let queries = random_numbers(&mut random, SEQUENCES.len() * INTERVAL * HEADS * HEAD_DIM);
    let window = ring(&queries, HEADS, HEAD_DIM, INTERVAL, None);
    let mut memory = Memory::new(&compressor, &one.batch());
    let layer = one.layer(0);
    // SAFETY: the host's memory is what it says.
    unsafe {
        let plan = compressor
            .plan(&layer, &one.batch(), &window, memory.workspace())
            .unwrap();
        compressor
            .apply(&layer, &one.batch(), &plan, memory.workspace())
            .unwrap();
        let layer = other.layer(0);
        compressor
            .compress(&layer, &other.batch(), &window, memory.workspace())
            .unwrap();
    }
    assert!(one.data == other.data && one.all_history == other.all_history);
}

#[test]
fn what_is_missing_or_makes_no_sense_is_refused_before_anything_is_written() {
    let mut random = Random::new(seed());
    let compressor = compressor(true, RotaryStyle::HalfSplit, Dtype::F32);
    let mut host = host(Place::HeadMajor, Dtype::F32, &mut random);
    let queries = random_numbers(&mut random, SEQUENCES.len() * INTERVAL * HEADS * HEAD_DIM);
    let window = ring(&queries, HEADS, HEAD_DIM, INTERVAL, None);
    let mut memory = Memory::new(&compressor, &host.batch());
    let sizes = compressor.sizes(&host.batch()).unwrap();
    let layer = host.layer(0);
    let data = host.data.clone();
    // SAFETY: the host's memory is what it says.
    unsafe {
        let refused = |layer: &Layer, window: &Window<'_>, memory: &mut Memory| {
            let plan = compressor.plan(layer, &host.batch(), window, memory.workspace());
            plan.unwrap_err().to_string()
        };
        let no_history = Layer {
            history: None,
            ..layer
        };
        assert!(refused(&no_history, &window, &mut memory).contains("history: expected"));
        let short = ring(&queries, HEADS, HEAD_DIM, INTERVAL - 1, None);
        assert!(refused(&layer, &short, &mut memory).contains("at least 20"));
        let empty = Window::Recorded { slots: None };
        assert!(refused(&layer, &empty, &mut memory).contains("at least 20 tokens"));
        let scores = vec![0.0; sizes.score_count];
        let selected = compressor.select(0, &host.batch(), &scores, memory.workspace());
        assert!(selected.unwrap_err().to_string().contains("lookahead-merge"));

        let plan = compressor
            .plan(&layer, &host.batch(), &window, memory.workspace())
            .unwrap();
        let plans = [
            (Plan { history: &[], ..plan }, "history: expected"),
            (
                Plan {
                    key_directions: &[],
                    ..plan
                },
                "key_directions: expected",
            ),
            (Plan { merges: &[], ..plan }, "nothing is merged into"),
        ];
        let mut spoiled = plan.history.to_vec();
        spoiled[3] = f32::NAN;
        let plans = plans.into_iter().chain([(
            Plan {
                history: &spoiled,
                ..plan
            },
            "finite",
        )]);
        for (plan, expected) in plans {
            let mut memory = Memory::new(&compressor, &host.batch());
            let error = compressor.apply(&layer, &host.batch(), &plan, memory.workspace());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
    host.set_history([0, 1, 12], f32::INFINITY);
    // SAFETY: as above.
    let error = unsafe { compressor.compress(&host.layer(0), &host.batch(), &window, memory.workspace()) };
    assert!(error.unwrap_err().to_string().contains("finite"));
    assert_eq!(host.data, data);
}
