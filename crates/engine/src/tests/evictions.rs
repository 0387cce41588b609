//! Policies that drop an entry at every token, against the formulas in float64: which entry goes, and what
//! attention each had. The queries are those of the steps, the keys what lies in the cache.

use std::collections::HashMap;
use std::sync::Arc;

use reasoning_rpc_core::{Budget, Policy, PolicyKind, Rolling, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

use super::{contents, none, prompt, prompt_up_to, run_pending, start, tiny, write};
use crate::{CacheType, Sequence};

const P: usize = 24;
const R: usize = 6;
const HEADS: usize = 2;
const GROUP: usize = 2;
const HEAD_DIM: usize = 16;

fn options(budget: Budget) -> RpcOptions {
    RpcOptions {
        interval: P,
        window: R,
        budget,
        ..RpcOptions::default()
    }
}

fn policy(kind: PolicyKind, budget: Budget) -> Arc<dyn Policy> {
    kind.build(options(budget)).unwrap()
}

/// A KV head's entries by position: key, value, history.
type Entries = HashMap<u32, (Vec<f32>, Vec<f32>, f32)>;

fn entries(sequence: &Sequence, layer: usize, kv_head: usize) -> Entries {
    let cache = sequence.cache.as_ref().unwrap();
    let history = cache.head(layer, kv_head).history();
    let all = cache.positions(layer, kv_head).enumerate();
    all.map(|(entry, position)| {
        let (key, value) = cache.entry_f32(layer, kv_head, entry);
        (position, (key, value, history[entry]))
    })
    .collect()
}

fn heads() -> impl Iterator<Item = (usize, usize)> {
    (0..3).flat_map(|layer| (0..HEADS).map(move |head| (layer, head)))
}

/// The attention that a token's query heads of one KV head give the entries up to its position, summed.
fn attention(of: &Entries, queries: &[f32], position: u32) -> HashMap<u32, f64> {
    let mut sums = HashMap::new();
    for query in queries.chunks(HEAD_DIM) {
        let logit = |key: &[f32]| {
            let products = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k));
            products.sum::<f64>() / (HEAD_DIM as f64).sqrt()
        };
        let seen = of.iter().filter(|&(&at, _)| at <= position);
        let weights: Vec<_> = seen.map(|(&at, (key, ..))| (at, logit(key).exp())).collect();
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        for (at, weight) in weights {
            *sums.entry(at).or_insert(0.0) += weight / total;
        }
    }
    sums
}

/// What goes: the least, of equals the most recent. With how much less it has than the next.
fn least(sums: &HashMap<u32, f64>, candidates: &[u32]) -> (u32, f64) {
    let mut order = candidates.to_vec();
    order.sort_by(|a, b| sums[a].total_cmp(&sums[b]).then(b.cmp(a)));
    let margin = order.get(1).map_or(1.0, |next| sums[next] - sums[&order[0]]);
    (order[0], margin)
}

/// float32 against float64: sums of a few hundred weights of at most 1.
const NEAR: f64 = 1e-4;

/// Caches whose keys attention reads as the float32 numbers that they stand for.
const CACHES: [CacheType; 3] = [CacheType::F32, CacheType::F16, CacheType::Bf16];

fn check(kind: PolicyKind, cache: CacheType) {
    let mut random = Random::new(seed());
    let engine = tiny(|options| options.cache_type = Some(cache));
    let budget = match random.below(2) {
        0 => Budget::Ratio(4),
        _ => Budget::Entries(2 + random.below(50)),
    };
    let rolling = Rolling::new(options(budget).schedule().unwrap(), kind == PolicyKind::H2o);
    let mut sequence = start(&engine, policy(kind, budget), &prompt_up_to(&mut random, 30));
    sequence.hold_evictions = true;
    sequence.cache.as_mut().unwrap().remember(64, 4 * HEAD_DIM);
    let (turn, mut compared, mut evictions) = (random.below(120), 0, 0);
    let mut reference: Vec<HashMap<u32, f64>> = vec![HashMap::new(); 3 * HEADS];
    for token in 0..140 {
        if token == turn {
            sequence.append_tokens(&prompt(&mut random, 9)).unwrap();
        }
        if token == 10 {
            // Several at a time.
            let more = prompt(&mut random, 12);
            more.iter().for_each(|&id| sequence.accept(id).unwrap());
        }
        while sequence.pending() > 0 {
            let (from, generated) = (sequence.written, sequence.generated_written);
            engine.shared.advance(&mut [&mut sequence], |_| 7).unwrap();
            let written = from as u32..sequence.written as u32;
            let ran_generated = sequence.generated_written > generated;
            for (index, (layer, head)) in heads().enumerate() {
                let now = entries(&sequence, layer, head);
                let sums = &mut reference[index];
                if !ran_generated {
                    let total = |of: &mut dyn Iterator<Item = f64>| of.sum::<f64>();
                    let found = total(&mut now.values().map(|entry| f64::from(entry.2)));
                    let expected = total(&mut sums.values().copied());
                    if kind == PolicyKind::H2o && generated > 0 {
                        let added = (written.len() * GROUP) as f64;
                        assert!((found - expected - added).abs() < 1e-2, "{found} {expected}");
                    }
                    // Queries of given tokens are not remembered: from here on, what was found.
                    *sums = now.iter().map(|(&at, entry)| (at, f64::from(entry.2))).collect();
                    continue;
                }
                let window = sequence.cache.as_ref().unwrap().window(layer);
                let width = HEADS * GROUP * HEAD_DIM;
                for (position, index) in written.clone().zip(generated..) {
                    let row = &window.rows()[index % 64 * width..][head * GROUP * HEAD_DIM..];
                    let added = attention(&now, &row[..GROUP * HEAD_DIM], position);
                    if kind == PolicyKind::Tova {
                        sums.clear();
                    }
                    added
                        .into_iter()
                        .for_each(|(at, weight)| *sums.entry(at).or_insert(0.0) += weight);
                }
                if kind == PolicyKind::H2o {
                    for (at, (.., found)) in &now {
                        let expected = sums.get(at).copied().unwrap_or(0.0);
                        assert!(
                            (f64::from(*found) - expected).abs() < NEAR,
                            "{at}: {found} {expected}"
                        );
                    }
                }
            }
            if rolling.evictions(sequence.generated_written) == sequence.stats.compressions {
                continue;
            }
            let before: Vec<Entries> = heads().map(|(l, h)| entries(&sequence, l, h)).collect();
            sequence.hold_evictions = false;
            sequence.evict_if_due();
            sequence.hold_evictions = true;
            evictions += 1;
            let is_given = |at: u32| sequence.given.iter().any(|range| range.contains(&at));
            let mut generated: Vec<u32> = (0..sequence.written as u32).filter(|&at| !is_given(at)).collect();
            generated.truncate(generated.len() - rolling.window(generated.len()));
            for (index, (layer, head)) in heads().enumerate() {
                let now = entries(&sequence, layer, head);
                let gone: Vec<u32> = before[index]
                    .keys()
                    .filter(|at| !now.contains_key(at))
                    .copied()
                    .collect();
                assert_eq!(gone.len(), 1);
                let candidates: Vec<u32> = generated
                    .iter()
                    .filter(|at| before[index].contains_key(at))
                    .copied()
                    .collect();
                let (wanted, margin) = match kind {
                    PolicyKind::Tova => {
                        let mut all = reference[layer * HEADS].clone();
                        for (at, weight) in &reference[layer * HEADS + 1] {
                            *all.entry(*at).or_insert(0.0) += weight;
                        }
                        least(&all, &candidates)
                    }
                    _ => least(&reference[index], &candidates),
                };
                if gone[0] == wanted {
                    compared += 1;
                } else {
                    assert!(
                        candidates.contains(&gone[0]) && margin < 1e-6,
                        "{gone:?} {wanted}"
                    );
                }
                for (at, entry) in &now {
                    assert_eq!(entry, &before[index][at], "what stays is as it was");
                }
            }
            for (sums, (layer, head)) in reference.iter_mut().zip(heads()) {
                let now = entries(&sequence, layer, head);
                sums.retain(|at, _| now.contains_key(at));
            }
        }
        sequence.sample().unwrap();
    }
    assert!(
        evictions > 50 && compared > 3 * evictions,
        "{compared} of {evictions}"
    );
}

#[test]
fn h2o_drops_what_had_the_least_attention() {
    CACHES.into_iter().for_each(|cache| check(PolicyKind::H2o, cache));
}

#[test]
fn tova_drops_what_the_newest_query_does_not_look_at() {
    CACHES
        .into_iter()
        .for_each(|cache| check(PolicyKind::Tova, cache));
}

fn histories(sequence: &Sequence) -> Vec<Vec<f32>> {
    let cache = sequence.cache.as_ref().unwrap();
    heads()
        .map(|(layer, head)| cache.head(layer, head).history().to_vec())
        .collect()
}

/// Several chunks of attention, shared by threads or not, written or read: the same bits.
#[test]
fn what_goes_depends_on_the_text_alone() {
    let mut random = Random::new(seed());
    let text = prompt_up_to(&mut random, 30);
    let more = prompt(&mut random, 1300);
    for kind in [PolicyKind::H2o, PolicyKind::Tova] {
        let outcomes = [(1, 256), (2, 256), (2, 5)].map(|(threads, chunk)| {
            let engine = tiny(|options| options.threads = threads);
            let mut sequence = start(&engine, policy(kind, Budget::Entries(1200)), &text);
            for &id in &more {
                sequence.accept(id).unwrap();
            }
            while sequence.pending() > 0 {
                engine.shared.advance(&mut [&mut sequence], |_| chunk).unwrap();
            }
            assert_eq!(sequence.stats().compressions, 100);
            (contents(&sequence), histories(&sequence))
        });
        assert_eq!(outcomes[0], outcomes[1], "{kind:?}: threads");
        assert_eq!(outcomes[0], outcomes[2], "{kind:?}: chunks");
    }
}

#[test]
fn a_rewind_before_anything_went_takes_its_attention_back() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt_up_to(&mut random, 30);
    for kind in [PolicyKind::H2o, PolicyKind::Tova] {
        let mut straight = start(&engine, policy(kind, Budget::Entries(50)), &text);
        let expected = write(&engine, &mut straight, 120);
        run_pending(&engine, &mut straight);
        let mut rewound = start(&engine, policy(kind, Budget::Entries(50)), &text);
        let before = 20 + random.below(29);
        write(&engine, &mut rewound, before);
        let back = text.len() + 1 + random.below(19);
        rewound.rewind(back).unwrap();
        write(&engine, &mut rewound, text.len() + 120 - back);
        assert_eq!(rewound.tokens()[text.len()..], expected, "{kind:?}");
        run_pending(&engine, &mut rewound);
        assert_eq!(contents(&rewound), contents(&straight), "{kind:?}");
        assert_eq!(histories(&rewound), histories(&straight), "{kind:?}");
        // What went is gone.
        let error = rewound.rewind(text.len() + 60).unwrap_err().to_string();
        assert!(error.contains("the last compression"), "{error}");
    }
}

#[test]
fn a_step_that_is_not_asked_for_attention_leaves_none() {
    let engine = tiny(|_| {});
    // Nothing ever goes in this context.
    for policy in [none(), policy(PolicyKind::H2o, Budget::Entries(4096))] {
        let mut sequence = start(&engine, policy, &[1, 2, 3]);
        write(&engine, &mut sequence, 5);
        assert!(histories(&sequence).iter().all(Vec::is_empty));
    }
}
