//! What each policy keeps, and what it writes, against the formulas in float64 of what lay in the cache before
//! the compression: keys, values, queries, scores of the past.

use std::collections::HashMap;

use reasoning_rpc_core::{
    Aggregation, Budget, PolicyKind, Pooling, Queries, RpcOptions, Similarity, Softmax, Spec,
};
use reasoning_rpc_test_support::{Random, seed};

use super::formulas::{Before, P, R, online_reference, reference, shared_out, wide};
use super::{fixed, none, prompt, prompt_up_to, run_pending, start, tiny, write};
use crate::{CacheType, Engine, Sequence};

const RATIO: usize = 4;

/// The state of every layer and KV head.
pub(super) fn look(sequence: &Sequence, remembered: usize) -> Vec<Before> {
    let cache = sequence.cache.as_ref().unwrap();
    let shape = *cache.shape();
    let is_given = |position: u32| sequence.given.iter().any(|range| range.contains(&position));
    let generated: Vec<u32> = (0..sequence.written as u32).filter(|&p| !is_given(p)).collect();
    let window_start = generated[generated.len() - R];
    let all = (0..shape.layers).flat_map(|l| (0..shape.kv_heads).map(move |h| (l, h)));
    all.map(|(layer, kv_head)| {
        let len = cache.head(layer, kv_head).len();
        let entries: Vec<_> = (0..len)
            .map(|entry| cache.entry_f32(layer, kv_head, entry))
            .collect();
        let positions: Vec<u32> = (0..len)
            .map(|entry| cache.position(layer, kv_head, entry))
            .collect();
        let window = cache.window(layer);
        assert_eq!(window.tokens(), remembered);
        let mut queries = Vec::new();
        let asked = remembered.min(sequence.generated_written);
        if remembered > 0 {
            window.gather(
                sequence.generated_written - asked..sequence.generated_written,
                2 * kv_head..2 * kv_head + 2,
                16,
                &mut queries,
            );
        }
        let queries: Vec<Vec<f64>> = queries.chunks(16).map(wide).collect();
        Before {
            candidates: (0..len)
                .filter(|&entry| !is_given(positions[entry]) && positions[entry] < window_start)
                .collect(),
            keys: entries.iter().map(|(key, _)| wide(key)).collect(),
            values: entries.iter().map(|(_, value)| wide(value)).collect(),
            history: match cache.head(layer, kv_head).history() {
                [] => vec![0.0; len],
                history => wide(history),
            },
            queries: queries.chunks(2).map(<[_]>::to_vec).collect(),
            asked_from: generated[generated.len() - asked..].to_vec(),
            frequencies: wide(window.frequencies()),
            positions,
        }
    })
    .collect()
}

/// float32 against float64: sums of a few hundred products of numbers near 1, and their exponentials.
const NEAR: f64 = 1e-4;

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= NEAR * expected.abs().max(1.0)
}

/// What a row loses when it is written: half a step of its type, for each number.
fn half_steps(cache: CacheType, row: &[f64]) -> Vec<f64> {
    let most = row.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let half_step = |x: &f64| match cache {
        CacheType::F32 => 0.0,
        // 11 and 8 bits of precision.
        CacheType::F16 => x.abs() / 2f64.powi(11),
        CacheType::Bf16 => x.abs() / 2f64.powi(8),
        CacheType::I8 => most / 127.0 / 2.0,
    };
    row.iter().map(half_step).collect()
}

fn check(kind: PolicyKind) {
    check_in(kind, CacheType::F32);
}

fn check_in(kind: PolicyKind, cache: CacheType) {
    let alike = RpcOptions {
        aggregation: Some(Aggregation::KvHead),
        ..RpcOptions::default()
    };
    check_with(kind, cache, alike, Random::new(seed()));
}

/// Writes 170 tokens, with some given in between, and shows what lay in the cache before and after each compression,
/// and how many were before it.
pub(super) fn each_compression(
    engine: &Engine,
    sequence: &mut Sequence,
    random: &mut Random,
    mut check: impl FnMut(&Sequence, usize, &[Before], &[Before]),
) {
    let turn = random.below(150);
    for token in 0..170 {
        if token == turn {
            sequence.append_tokens(&prompt(random, 9)).unwrap();
        }
        while sequence.pending() > 0 {
            engine.shared.advance(&mut [&mut *sequence], |_| 7).unwrap();
            if !sequence.is_due() {
                continue;
            }
            let remembered = sequence.cache.as_ref().unwrap().window(0).tokens();
            let before = look(sequence, remembered);
            let done = sequence.stats.compressions;
            sequence.compress_if_due().unwrap();
            check(sequence, done, &before, &look(sequence, remembered));
        }
        sequence.sample().unwrap();
    }
}

fn check_with(kind: PolicyKind, cache: CacheType, options: RpcOptions, mut random: Random) {
    let engine = tiny(|options| options.cache_type = Some(cache));
    let budget = match random.below(2) {
        0 => Budget::Ratio(RATIO),
        _ => Budget::Entries(5 + random.below(40)),
    };
    let options = RpcOptions {
        interval: P,
        window: R,
        budget,
        ..options
    };
    let policy = kind.build(options).unwrap();
    let schedule = options.schedule().unwrap();
    let mut sequence = start(&engine, policy, &prompt_up_to(&mut random, 30));
    let online = options.queries == Queries::Online;
    if online {
        // To look at; the policy wants fewer, or none.
        sequence
            .cache
            .as_mut()
            .unwrap()
            .remember(2 * Spec::MOMENT_TOKENS, 4 * 16);
    }
    let mut carried = vec![HashMap::new(); 6];
    let (mut compared, mut unequal) = (0, 0);
    each_compression(
        &engine,
        &mut sequence,
        &mut random,
        |sequence, done, before, after| {
            let layers = before;
            let mut next_carried = carried.clone();
            for (index, (before, found)) in before.iter().zip(after).enumerate() {
                let after = |index: usize, keep| match online {
                    true => online_reference(&options, kind, &layers[index], &carried[index], keep),
                    false => reference(&options, kind, &layers[index], keep),
                };
                let mut keep = Some(schedule.kept(done));
                if options.aggregation == Some(Aggregation::Adaptive) {
                    let first = index / 2 * 2;
                    let scores = [first, first + 1].map(|head| after(head, 1).scores);
                    keep = shared_out(&scores, schedule.kept(done)).map(|counts| counts[index % 2]);
                }
                let expected = after(index, keep.unwrap_or(1));
                if online {
                    for (score, &entry) in expected.raw.iter().zip(&before.candidates) {
                        // Sums of shares in float32, of queries that int8 rounds to 16 bits.
                        let found = before.history[entry];
                        assert!(
                            (found - score).abs() <= 1e-3 * score + 1e-6,
                            "{found} for {score}"
                        );
                    }
                    let histories = found.positions.iter().copied().zip(found.history.iter().copied());
                    next_carried[index] = histories.collect();
                }
                if keep.is_none() {
                    continue;
                }
                let record = &sequence.log[sequence.log.len() - 3 + index / 2];
                assert_eq!(record.kept.len(), 2, "a set for each KV head");
                let kept = &record.kept[index % 2];
                assert_eq!(kept.len(), expected.kept.len());
                unequal += usize::from(kept.len() != record.kept[0].len());
                let positions = |c: &usize| before.positions[before.candidates[*c]];
                let wanted: Vec<u32> = expected.kept.iter().map(positions).collect();
                if *kept != wanted {
                    // Only what is as good as equal may be swapped.
                    let at = |position: &u32| {
                        before
                            .candidates
                            .iter()
                            .position(|&e| before.positions[e] == *position)
                    };
                    let score = |position: &u32| expected.scores[at(position).unwrap()];
                    let worst = wanted.iter().map(score).fold(f64::INFINITY, f64::min);
                    assert!(
                        kept.iter().all(|position| score(position) >= worst - 1e-6),
                        "{kind:?} {index}: {kept:?} {wanted:?}"
                    );
                    continue;
                }
                // Into which of two it goes that are as good as equally near is float32's to say.
                if expected.margin < 1e-5 {
                    continue;
                }
                compared += 1;
                for (place, &candidate) in expected.kept.iter().enumerate() {
                    let entry = found.positions.binary_search(&kept[place]).unwrap();
                    assert!(near(found.history[entry], expected.history[candidate]), "history");
                    for (found, expected) in [
                        (&found.keys[entry], &expected.keys[candidate]),
                        (&found.values[entry], &expected.values[candidate]),
                    ] {
                        let slack = half_steps(cache, expected);
                        for ((found, expected), slack) in found.iter().zip(expected).zip(slack) {
                            let error = ((found - expected).abs() - slack).max(0.0);
                            assert!(
                                near(expected + error, *expected),
                                "{kind:?} {cache:?}: {found} for {expected}"
                            );
                        }
                    }
                }
                // What is no candidate stays as it was, its history 0.
                for (entry, position) in found.positions.iter().enumerate() {
                    let old = before.positions.binary_search(position).unwrap();
                    if !before.candidates.contains(&old) {
                        assert_eq!(found.keys[entry], before.keys[old]);
                        assert_eq!(found.values[entry], before.values[old]);
                        assert_eq!(found.history[entry], 0.0);
                    }
                }
            }
            carried = next_carried;
        },
    );
    assert!(compared >= 12, "{compared} heads were compared");
    if options.aggregation == Some(Aggregation::Adaptive) {
        assert!(unequal > 0, "some KV heads keep more than others");
    }
}

#[test]
fn streaming_keeps_the_first_four_and_the_most_recent() {
    check(PolicyKind::Streaming);
}

#[test]
fn snapkv_keeps_what_the_window_looks_at() {
    check(PolicyKind::SnapKv);
}

#[test]
fn rpc_reads_what_goes_beyond_the_paper() {
    let mut random = Random::new(seed());
    for all in 0..2 {
        let options = RpcOptions {
            aggregation: Some(Aggregation::KvHead),
            softmax: [Softmax::Candidates, Softmax::All][all],
            pooling: [Pooling::None, Pooling::Average, Pooling::Max][random.below(3)],
            history: [None, Some(0.0), Some(0.5)][random.below(3)],
            value_norms: random.below(2) == 0,
            redundancy: [0.0, 0.3][random.below(2)],
            ..RpcOptions::default()
        };
        eprintln!("{options:?}");
        check_with(
            PolicyKind::Rpc,
            CacheType::F32,
            options,
            Random::new(random.below(1 << 30) as u64),
        );
    }
}

#[test]
fn kv_heads_share_the_budget_of_their_layer() {
    let adaptive = |queries| RpcOptions {
        aggregation: Some(Aggregation::Adaptive),
        pooling: Pooling::Average,
        queries,
        ..RpcOptions::default()
    };
    for kind in [
        PolicyKind::Rpc,
        PolicyKind::SnapKv,
        PolicyKind::Lookahead,
        PolicyKind::LookaheadMerge,
    ] {
        check_with(
            kind,
            CacheType::F32,
            adaptive(Queries::Stored),
            Random::new(seed()),
        );
    }
    check_with(
        PolicyKind::LookaheadMerge,
        CacheType::F16,
        adaptive(Queries::Online),
        Random::new(seed()),
    );
}

#[test]
fn what_kv_heads_share_fits_what_is_promised() {
    let mut random = Random::new(seed());
    let text = prompt_up_to(&mut random, 30);
    let engine = tiny(|options| options.block_entries = 16);
    let mut full = start(&engine, none(), &text);
    let expected = write(&engine, &mut full, 150);
    for (budget, all) in [
        (Budget::Ratio(1), true),
        (Budget::Ratio(RATIO), false),
        (Budget::Entries(10), false),
    ] {
        for kind in [
            PolicyKind::Rpc,
            PolicyKind::SnapKv,
            PolicyKind::Lookahead,
            PolicyKind::LookaheadMerge,
        ] {
            let options = RpcOptions {
                interval: P,
                window: R,
                budget,
                aggregation: Some(Aggregation::Adaptive),
                ..RpcOptions::default()
            };
            let policy = kind.build(options).unwrap();
            let entries = policy.promised_entries(text.len(), 149, 16);
            let promised = engine.cache_shape().bytes(entries) + engine.query_bytes(&*policy);
            // No byte more.
            let engine = tiny(|options| (options.block_entries, options.budget) = (16, Some(promised)));
            let mut sequence = start(&engine, policy, &text);
            sequence.reserve(150).unwrap();
            let tokens = write(&engine, &mut sequence, 150);
            assert!(sequence.stats().cache_peak_bytes <= promised);
            assert!(!all || tokens == expected, "{kind:?}");
            // Nor for one that comes back.
            let mut saved = Vec::new();
            sequence.save(&mut saved).unwrap();
            let shown = super::contents(&sequence);
            drop(sequence);
            let restored = engine.restore(&saved).unwrap();
            assert_eq!(super::contents(&restored), shown, "{kind:?}");
        }
    }
    let portable = reasoning_rpc_test_support::model("golden/qwen2_p32-portable");
    let engine = tiny(|options| options.model = portable);
    let options = RpcOptions {
        aggregation: Some(Aggregation::Adaptive),
        ..RpcOptions::default()
    };
    let refused = engine.sequence(crate::SequenceOptions {
        policy: PolicyKind::Rpc.build(options).unwrap(),
        sampling: crate::sampling::SamplingOptions::GREEDY,
        record_kept: false,
    });
    assert!(refused.err().unwrap().to_string().contains("cached flavour"));
}

#[test]
fn r_kv_drops_what_is_said_twice() {
    check(PolicyKind::RKv);
}

#[test]
fn lookahead_keeps_what_the_next_interval_will_look_at() {
    check(PolicyKind::Lookahead);
}

#[test]
fn lookahead_merge_writes_the_dropped_into_the_kept() {
    check(PolicyKind::LookaheadMerge);
    for cache in [CacheType::F16, CacheType::Bf16, CacheType::I8] {
        check_in(PolicyKind::LookaheadMerge, cache);
    }
    let cosine = RpcOptions {
        aggregation: Some(Aggregation::KvHead),
        similarity: Similarity::Cosine,
        ..RpcOptions::default()
    };
    check_with(
        PolicyKind::LookaheadMerge,
        CacheType::F32,
        cosine,
        Random::new(seed()),
    );
}

#[test]
fn lookahead_asks_while_it_attends() {
    for kind in [PolicyKind::Lookahead, PolicyKind::LookaheadMerge] {
        for cache in [CacheType::F32, CacheType::F16, CacheType::Bf16, CacheType::I8] {
            let options = RpcOptions {
                aggregation: Some(Aggregation::KvHead),
                queries: Queries::Online,
                ..RpcOptions::default()
            };
            check_with(kind, cache, options, Random::new(seed()));
        }
    }
}

/// All of one budget, so that tokens can be compared.
fn all_with(
    budget: Budget,
    aggregation: Option<Aggregation>,
) -> impl Iterator<Item = (PolicyKind, std::sync::Arc<dyn reasoning_rpc_core::Policy>)> {
    let options = RpcOptions {
        interval: P,
        window: R,
        budget,
        aggregation,
        ..RpcOptions::default()
    };
    let online = RpcOptions {
        queries: Queries::Online,
        ..options
    };
    let ahead = [PolicyKind::Lookahead, PolicyKind::LookaheadMerge].map(|kind| (kind, online));
    let all = PolicyKind::ALL.into_iter().map(move |kind| (kind, options));
    all.chain(ahead)
        .map(|(kind, options)| (kind, kind.build(options).unwrap()))
}

#[test]
fn a_ratio_of_one_and_an_ample_budget_change_no_token_of_any_policy() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt_up_to(&mut random, 30);
    let mut full = start(&engine, none(), &text);
    let expected = write(&engine, &mut full, 110);
    for budget in [Budget::Ratio(1), Budget::Entries(110)] {
        for (kind, policy) in all_with(budget, None) {
            let mut sequence = start(&engine, policy, &text);
            assert_eq!(
                write(&engine, &mut sequence, 110),
                expected,
                "{kind:?} {budget:?}"
            );
        }
    }
}

#[test]
fn all_policies_hold_equally_many_entries() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt_up_to(&mut random, 30);
    let mut like = start(&engine, fixed(P, R, 10), &text);
    write(&engine, &mut like, 120);
    let lengths = |sequence: &Sequence| -> Vec<_> {
        let log = sequence.compressions().iter();
        log.map(|record| (record.at_token, record.layer, record.len_before, record.len_after))
            .collect()
    };
    let alike = Some(Aggregation::KvHead);
    for (kind, policy) in all_with(Budget::Entries(10), alike).filter(|(kind, _)| *kind != PolicyKind::None) {
        let shape = engine.cache_shape();
        let queries = shape.query_blocks(policy.spec().counted_queries(), 4) * shape.block_bytes();
        let foretold = shape.bytes(text.len() + policy.peak_generated(119)) + queries;
        let mut sequence = start(&engine, policy, &text);
        write(&engine, &mut sequence, 120);
        if !matches!(kind, PolicyKind::H2o | PolicyKind::Tova) {
            assert_eq!(lengths(&sequence), lengths(&like), "{kind:?}");
        }
        assert_eq!(sequence.stats().cache_peak_bytes, foretold, "{kind:?}");
    }
}

/// What a policy remembers goes with forks, comes back with rewinds and saved sequences, and a merge never
/// writes what another sequence holds.
#[test]
fn what_a_policy_remembers_is_forked_rewound_and_saved() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let adaptive = [PolicyKind::Rpc, PolicyKind::SnapKv, PolicyKind::LookaheadMerge].map(|kind| {
        let options = RpcOptions {
            interval: P,
            window: R,
            budget: Budget::Ratio(RATIO),
            aggregation: Some(Aggregation::Adaptive),
            ..RpcOptions::default()
        };
        (kind, kind.build(options).unwrap())
    });
    let kind = PolicyKind::LookaheadMerge;
    let cosine = RpcOptions {
        interval: P,
        window: R,
        similarity: Similarity::Cosine,
        ..RpcOptions::default()
    };
    let others = adaptive.into_iter().chain([(kind, kind.build(cosine).unwrap())]);
    let alike = Some(Aggregation::KvHead);
    for (kind, policy) in all_with(Budget::Ratio(RATIO), alike).chain(others) {
        let text = prompt_up_to(&mut random, 40);
        let mut original = start(&engine, policy.clone(), &text);
        let before = 40 + random.below(60);
        write(&engine, &mut original, before);
        run_pending(&engine, &mut original);
        let shown = super::contents(&original);
        let mut bytes = Vec::new();
        original.save(&mut bytes).unwrap();
        let mut restored = engine.restore(&bytes).unwrap();
        let mut fork = original.fork().unwrap();
        let theirs = write(&engine, &mut fork, 70);
        assert_eq!(
            super::contents(&original),
            shown,
            "{kind:?}: a fork wrote a shared block"
        );
        assert_eq!(write(&engine, &mut restored, 70), theirs, "{kind:?}: restored");
        assert_eq!(restored.compressions(), fork.compressions());
        let ours = write(&engine, &mut original, 70);
        assert_eq!(ours, theirs, "{kind:?}: forked");
        assert_eq!(super::contents(&original), super::contents(&fork), "{kind:?}");
        let histories = |sequence: &Sequence| -> Vec<Vec<f32>> {
            let cache = sequence.cache.as_ref().unwrap();
            let heads = (0..3).flat_map(|layer| (0..2).map(move |head| (layer, head)));
            heads
                .map(|(layer, head)| cache.head(layer, head).history().to_vec())
                .collect()
        };
        assert_eq!(histories(&original), histories(&fork));
        assert_eq!(histories(&original), histories(&restored));

        // Back as far as it goes, and on again, with a compression on the way.
        let earliest = text.len().max(original.compressed_at + 1);
        let all = original.tokens().to_vec();
        original.rewind(earliest).unwrap();
        let count = all.len() - earliest + 30;
        let mut again = all[..earliest].to_vec();
        again.extend(write(&engine, &mut original, count));
        write(&engine, &mut fork, 30);
        assert_eq!(again, fork.tokens(), "{kind:?}: rewound");
        assert_eq!(histories(&original), histories(&fork));
    }
}

#[test]
fn a_rotation_that_is_not_known_is_refused() {
    let portable = reasoning_rpc_test_support::model("golden/qwen2_p32-portable");
    let engine = tiny(|options| options.model = portable);
    for (kind, policy) in all_with(Budget::Ratio(RATIO), None) {
        let options = crate::SequenceOptions {
            policy,
            sampling: crate::sampling::SamplingOptions::GREEDY,
            record_kept: true,
        };
        let looks_ahead = matches!(
            kind,
            PolicyKind::Lookahead | PolicyKind::LookaheadMerge | PolicyKind::H2o | PolicyKind::Tova
        );
        match engine.sequence(options) {
            Ok(_) => assert!(!looks_ahead),
            Err(error) => assert!(
                looks_ahead && error.to_string().contains("cached flavour"),
                "{error}"
            ),
        }
    }
}
