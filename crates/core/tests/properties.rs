//! What holds for every schedule and every plan.

use proptest::prelude::*;
use reasoning_rpc_core::{
    Aggregation, Budget, CacheShape, LayerPlan, LayerView, PlanError, PlanMemory, PlanParts, Policy, Pooling,
    Rpc, RpcOptions, Schedule,
};
use reasoning_rpc_test_support::{Random, property};

fn schedules() -> impl Strategy<Value = Schedule> {
    (2usize..40, 1usize..9, any::<bool>(), 1usize..400).prop_flat_map(|(kept, ratio, fixed, entries)| {
        let interval = kept * ratio;
        let budget = match fixed {
            true => Budget::Entries(entries),
            false => Budget::Ratio(ratio),
        };
        (1..interval).prop_map(move |window| Schedule::new(interval, window, budget).unwrap())
    })
}

/// The peak formula against a walk, token by token, with real lengths.
#[test]
fn the_peak_is_what_a_walk_sees() {
    property((schedules(), 0usize..3000), |(schedule, generated)| {
        let (mut len, mut peak, mut done) = (0usize, 0usize, 0usize);
        for g in 1..=generated {
            len += 1;
            peak = peak.max(len);
            if g == schedule.due_at(done) {
                prop_assert_eq!((g - schedule.window()) % schedule.interval(), 0);
                prop_assert_eq!(len - schedule.window(), schedule.candidates(done));
                prop_assert!(schedule.kept(done) <= schedule.candidates(done));
                let kept = match schedule.budget() {
                    Budget::Ratio(ratio) => (g - schedule.window()) / ratio,
                    Budget::Entries(entries) => entries,
                };
                prop_assert_eq!(kept, schedule.kept(done));
                done += 1;
                len = kept + schedule.window();
            }
        }
        prop_assert_eq!(done, schedule.compressions(generated));
        prop_assert_eq!(peak, schedule.peak_generated(generated));
        if let Budget::Entries(entries) = schedule.budget() {
            prop_assert!(peak <= entries + schedule.window() + schedule.interval());
        }
        Ok(())
    });
}

/// Plans of the policy: ascending, unique, inside the candidates, of the right size.
#[test]
fn plans_are_valid() {
    let inputs = (
        schedules(),
        0usize..4,
        1usize..5,
        any::<(bool, bool)>(),
        0usize..5,
        any::<u64>(),
    );
    property(
        inputs,
        |(schedule, done, kv_heads, (per_head, max), half_kernel, seed)| {
            let policy = Rpc::new(RpcOptions {
                interval: schedule.interval(),
                window: schedule.window(),
                budget: schedule.budget(),
                aggregation: per_head.then_some(Aggregation::KvHead),
                pooling: if max { Pooling::Max } else { Pooling::Average },
                kernel: 2 * half_kernel + 1,
                ..RpcOptions::default()
            })
            .unwrap();
            let counts = vec![schedule.candidates(done); kv_heads];
            let mut random = Random::new(seed);
            let scores: Vec<f32> = (0..counts.iter().sum()).map(|_| random.number().abs()).collect();
            let view = LayerView {
                layer: 0,
                done,
                candidates: &counts,
                scores: &scores,
                ..LayerView::default()
            };
            let mut memory = PlanMemory::default();
            let mut plan = memory.lend(&counts, 0);
            policy.plan(&view, &mut plan).unwrap();
            plan.validate(&counts).unwrap();
            prop_assert_eq!(plan.sets(), if per_head { kv_heads } else { 1 });
            for kv_head in 0..kv_heads {
                prop_assert_eq!(plan.kept(kv_head).len(), schedule.kept(done));
            }
            Ok(())
        },
    );
}

/// Bytes are whole blocks, enough and not one too many.
#[test]
fn bytes_are_rounded_up_to_blocks() {
    property(
        (0usize..5000, 1usize..200, 1usize..9),
        |(entries, block, heads)| {
            let shape = CacheShape {
                layers: 3,
                kv_heads: heads,
                head_dim: 64,
                element_bytes: 2,
                scale_bytes: 0,
                block_entries: block,
            };
            let blocks = shape.bytes(entries) / shape.block_bytes() / (3 * heads);
            prop_assert!(blocks * block >= entries && blocks * block < entries + block);
            Ok(())
        },
    );
}

#[test]
fn bad_plans_are_refused_with_the_numbers() {
    let validate = |sets: &[&[u32]], counts: &[usize]| {
        let (mut kept, mut ends) = ([0; 8], [0; 4]);
        let mut plan = LayerPlan::over(PlanParts {
            kept: &mut kept,
            ends: &mut ends,
            ..PlanParts::default()
        });
        sets.iter().for_each(|set| plan.push_set(set).unwrap());
        plan.validate(counts)
    };
    let counts = [4, 4];
    assert_eq!(
        validate(&[], &counts),
        Err(PlanError::Sets {
            expected: 2,
            found: 0
        })
    );
    assert_eq!(
        validate(&[&[0], &[1], &[2]], &counts),
        Err(PlanError::Sets {
            expected: 2,
            found: 3
        })
    );
    assert_eq!(
        validate(&[&[1, 1]], &counts),
        Err(PlanError::Order {
            kv_head: 0,
            first: 1,
            second: 1
        })
    );
    assert_eq!(
        validate(&[&[0, 3], &[2, 4]], &counts),
        Err(PlanError::Range {
            kv_head: 1,
            index: 4,
            candidates: 4
        })
    );
    // One set that is to serve a head with fewer candidates.
    assert_eq!(
        validate(&[&[3]], &[4, 3]),
        Err(PlanError::Range {
            kv_head: 1,
            index: 3,
            candidates: 3
        })
    );
    assert_eq!(validate(&[&[], &[0, 1, 2, 3]], &counts), Ok(()));
}

/// A policy writes no more than the memory it was lent, and says what is missing.
#[test]
fn memory_that_is_too_small_is_an_error() {
    let (mut kept, mut ends) = ([0; 3], [0; 1]);
    let mut plan = LayerPlan::over(PlanParts {
        kept: &mut kept,
        ends: &mut ends,
        ..PlanParts::default()
    });
    let error = plan.push_set(&[0, 1, 2, 3]).unwrap_err();
    assert!(error.to_string().contains("1 sets, 4 entries"), "{error}");
    plan.push_set(&[0, 2]).unwrap();
    assert!(plan.push_set(&[1]).is_err());
    assert_eq!((plan.sets(), plan.kept(1)), (1, &[0, 2][..]));
}

#[test]
fn scores_that_are_no_numbers_are_refused() {
    let policy = Rpc::new(RpcOptions {
        interval: 4,
        window: 1,
        budget: Budget::Ratio(2),
        ..RpcOptions::default()
    })
    .unwrap();
    let view = LayerView {
        layer: 7,
        done: 0,
        candidates: &[4],
        scores: &[0.0, f32::NAN, 0.0, 0.0],
        ..LayerView::default()
    };
    let error = policy
        .plan(&view, &mut PlanMemory::default().lend(&[4], 0))
        .unwrap_err();
    assert!(
        error.to_string().contains("layer 7") && error.to_string().contains("NaN at 1"),
        "{error}"
    );
    let view = LayerView {
        scores: &[0.0],
        ..view
    };
    assert!(
        policy
            .plan(&view, &mut PlanMemory::default().lend(&[4], 0))
            .is_err()
    );
}
