//! What the log says that a compression could drop, with which scores, and what it kept: against the cache's own
//! positions, and against scores computed here in float64 from the keys and queries that were there.

use reasoning_rpc_core::{Aggregation, Budget, PolicyKind, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

use super::formulas::{Before, P, R, dot, reference, window_attention};
use super::policies::each_compression;
use super::{prompt_up_to, rpc, run_pending, start, tiny, write};
use crate::CompressionRecord;

/// float32 against float64: exponentials, and sums of some hundred of them.
const NEAR: f64 = 1e-4;

/// Softmax over the candidates alone, summed over the window, mean over query heads.
fn over_candidates(before: &Before) -> Vec<f64> {
    let mut sums = vec![0.0; before.candidates.len()];
    for heads in &before.queries {
        for query in heads {
            let scale = 1.0 / (query.len() as f64).sqrt();
            let weight = |&entry: &usize| (dot(query, &before.keys[entry]) * scale).exp();
            let weights: Vec<f64> = before.candidates.iter().map(weight).collect();
            let all: f64 = weights.iter().sum();
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight / all / heads.len() as f64;
            }
        }
    }
    sums
}

/// What the policy was to be shown.
fn scores(options: &RpcOptions, kind: PolicyKind, before: &Before) -> Vec<f64> {
    match kind {
        PolicyKind::Rpc => over_candidates(before),
        PolicyKind::SnapKv | PolicyKind::RKv => window_attention(before),
        PolicyKind::Lookahead | PolicyKind::LookaheadMerge => {
            // The policy adds a part of the last scores.
            let scores = reference(options, PolicyKind::Lookahead, before, 0).scores;
            let past = before.candidates.iter().map(|&entry| 0.6 * before.history[entry]);
            scores
                .iter()
                .zip(past)
                .map(|(score, past)| score - past)
                .collect()
        }
        _ => Vec::new(),
    }
}

fn check(kind: PolicyKind, aggregation: Aggregation) {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let budget = match random.below(2) {
        0 => Budget::Ratio(4),
        _ => Budget::Entries(5 + random.below(40)),
    };
    let options = RpcOptions {
        interval: P,
        window: R,
        budget,
        aggregation: Some(aggregation),
        ..RpcOptions::default()
    };
    let mut sequence = start(
        &engine,
        kind.build(options).unwrap(),
        &prompt_up_to(&mut random, 30),
    );
    sequence.record_scores(true);
    let mut compressions = 0;
    each_compression(
        &engine,
        &mut sequence,
        &mut random,
        |sequence, _, before, after| {
            compressions += 1;
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                let (layer, kv_head) = (index / 2, index % 2);
                let record = &sequence.log[sequence.log.len() - 3 + layer];
                assert_eq!((record.layer, record.candidates.len()), (layer, 2));
                let found = &record.candidates[kv_head];
                let positions = before.candidates.iter().map(|&entry| before.positions[entry]);
                assert_eq!(found.positions, positions.collect::<Vec<_>>(), "{kind:?}");
                let expected = scores(&options, kind, before);
                assert_eq!(found.scores.len(), expected.len(), "{kind:?}");
                for (&found, expected) in found.scores.iter().zip(expected) {
                    let error = (f64::from(found) - expected).abs();
                    assert!(
                        error <= NEAR * expected.abs() + 1e-7,
                        "{kind:?}: {found} for {expected}"
                    );
                }
                // What the cache has now is what it had without what could be dropped and was not kept.
                let kept = &record.kept[kv_head.min(record.kept.len() - 1)];
                let stays = |position: &&u32| !found.positions.contains(position) || kept.contains(position);
                let stayed: Vec<u32> = before.positions.iter().filter(stays).copied().collect();
                assert_eq!(after.positions, stayed, "{kind:?}");
                assert!(kept.iter().all(|position| found.positions.contains(position)));
            }
        },
    );
    assert!(compressions >= 3, "{compressions} compressions");
}

#[test]
fn the_log_names_candidates_and_their_scores() {
    check(PolicyKind::Rpc, Aggregation::Layer);
    check(PolicyKind::Rpc, Aggregation::KvHead);
    for kind in [
        PolicyKind::SnapKv,
        PolicyKind::Streaming,
        PolicyKind::Random,
        PolicyKind::RKv,
        PolicyKind::Lookahead,
        PolicyKind::LookaheadMerge,
    ] {
        check(kind, Aggregation::Layer);
    }
}

#[test]
fn scores_are_recorded_from_when_they_are_asked_for() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt_up_to(&mut random, 30);
    let mut plain = start(&engine, rpc(P, R, 4, Aggregation::Layer), &text);
    write(&engine, &mut plain, 100);
    let recorded = |log: &[CompressionRecord]| -> Vec<bool> {
        log.iter()
            .step_by(3)
            .map(|record| !record.candidates.is_empty())
            .collect()
    };
    assert_eq!(recorded(plain.compressions()), [false; 3]);

    let mut sequence = start(&engine, rpc(P, R, 4, Aggregation::Layer), &text);
    write(&engine, &mut sequence, 40);
    sequence.record_scores(true);
    write(&engine, &mut sequence, 30);
    assert_eq!(recorded(sequence.compressions()), [false, true]);
    let mut fork = sequence.fork().unwrap();
    run_pending(&engine, &mut sequence);
    let mut bytes = Vec::new();
    sequence.save(&mut bytes).unwrap();
    let mut restored = engine.restore(&bytes).unwrap();
    write(&engine, &mut fork, 30);
    write(&engine, &mut restored, 30);
    assert_eq!(recorded(fork.compressions()), [false, true, true]);
    assert_eq!(recorded(restored.compressions()), [false; 3]);
    // And nothing else is another.
    assert_eq!(fork.tokens(), plain.tokens());
    let kept = |log: &[CompressionRecord]| log.iter().map(|record| record.kept.clone()).collect::<Vec<_>>();
    assert_eq!(kept(fork.compressions()), kept(plain.compressions()));
    assert_eq!(kept(restored.compressions()), kept(plain.compressions()));
}
