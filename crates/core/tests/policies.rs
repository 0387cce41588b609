//! Policies by name, and what needs no cache to be tested: random draws, the plans that are refused. What each
//! of them keeps is compared with its formulas where there is a cache, in the engine.

use reasoning_rpc_core::{
    Aggregation, Budget, LayerPlan, LayerView, Merge, PlanError, PlanMemory, PolicyKind, Pooling, Queries,
    RpcOptions,
};
use reasoning_rpc_test_support::seed;

fn options(interval: usize, window: usize, ratio: usize) -> RpcOptions {
    RpcOptions {
        interval,
        window,
        budget: Budget::Ratio(ratio),
        ..RpcOptions::default()
    }
}

#[test]
fn names_are_those_that_select() {
    for kind in PolicyKind::ALL {
        assert_eq!(PolicyKind::from_name(kind.name()), Some(kind));
        let policy = kind.build(options(64, 8, 4)).unwrap();
        assert_eq!(policy.name(), kind.name());
        let (of, with) = policy.recipe().unwrap();
        assert_eq!(of, kind);
        assert_eq!(kind.build(with).unwrap().spec(), policy.spec());
        if kind != PolicyKind::None {
            assert!(
                kind.build(options(64, 64, 4)).is_err(),
                "{kind:?}: a window as long as the interval"
            );
        }
    }
    for name in ["", "RPC", "rpc ", "r_kv"] {
        assert_eq!(PolicyKind::from_name(name), None);
    }
}

fn drawn(seed: u64, layer: usize, done: usize, count: usize) -> Vec<Vec<u32>> {
    let policy = PolicyKind::Random.build(options(40, 8, 4)).unwrap();
    let candidates = [count; 3];
    let view = LayerView {
        layer,
        done,
        seed,
        candidates: &candidates,
        ..LayerView::default()
    };
    let mut memory = PlanMemory::default();
    let mut plan = memory.lend(&candidates, 0);
    policy.plan(&view, &mut plan).unwrap();
    plan.validate(&candidates).unwrap();
    (0..3).map(|kv_head| plan.kept(kv_head).to_vec()).collect()
}

#[test]
fn random_draws_each_entry_equally_often() {
    let first = seed();
    const DRAWS: u64 = 4000;
    let mut counts = [[0u32; 40]; 3];
    for seed in first..first + DRAWS {
        for (counts, kept) in counts.iter_mut().zip(drawn(seed, 1, 0, 40)) {
            assert_eq!(kept.len(), 10);
            kept.iter().for_each(|&index| counts[index as usize] += 1);
        }
    }
    // Binomial, 4000 of probability 1/4: mean 1000, deviation 27.4. One of 120 beyond 6 deviations is one run in
    // 4 million.
    for &count in counts.iter().flatten() {
        assert!(count.abs_diff(1000) < 165, "{count}");
    }
}

#[test]
fn random_draws_are_those_of_seed_layer_head_and_time() {
    let first = seed();
    let drawn_once = drawn(first, 1, 0, 40);
    assert_eq!(drawn_once, drawn(first, 1, 0, 40));
    assert_ne!(drawn_once[0], drawn_once[1]);
    assert_ne!(drawn_once[0], drawn(first, 2, 0, 40)[0]);
    assert_ne!(drawn_once[0], drawn(first + 1, 1, 0, 40)[0]);
    assert_ne!(drawn(first, 1, 1, 50)[0], drawn(first, 1, 2, 50)[0][..20]);
    assert_eq!(
        drawn(first, 1, 0, 7)[0],
        [0, 1, 2, 3, 4, 5, 6],
        "fewer than are to stay"
    );
}

#[test]
fn ties_go_to_the_lower_index() {
    let candidates = [20; 2];
    let (scores, history) = ([0.5; 40], [0.0; 40]);
    let keys: Vec<f32> = (0..40 * 8).map(|i| if i % 8 == 0 { 1.0 } else { 0.0 }).collect();
    let queries: Vec<f32> = (0..2 * 16).map(|i| i as f32).collect();
    for kind in [PolicyKind::Lookahead, PolicyKind::LookaheadMerge] {
        let alike = RpcOptions {
            aggregation: Some(Aggregation::KvHead),
            ..options(20, 4, 4)
        };
        let policy = kind.build(alike).unwrap();
        let view = LayerView {
            head_dim: 8,
            candidates: &candidates,
            scores: &scores,
            history: &history,
            keys: &keys,
            queries: &queries,
            ..LayerView::default()
        };
        let mut memory = PlanMemory::default();
        let mut plan = memory.lend(&candidates, 8);
        policy.plan(&view, &mut plan).unwrap();
        plan.validate(&candidates).unwrap();
        for kv_head in 0..2 {
            assert_eq!(plan.kept(kv_head), [0, 1, 2, 3, 4], "{kind:?}");
            // All keys are equal: all join the first.
            assert!(plan.merges(kv_head).iter().all(|merge| merge.into == 0));
        }
        // 0.5 each: the first takes in 15.
        let first = if kind == PolicyKind::Lookahead { 0.5 } else { 8.0 };
        assert_eq!(plan.history()[..2], [first, 0.5]);
    }
}

/// A plan of two KV heads with three candidates, which keep 0 and 2, and what `change` adds.
fn changed(change: impl Fn(&mut LayerPlan<'_>) -> Result<(), PlanError>) -> Result<(), PlanError> {
    let mut memory = PlanMemory::default();
    let mut plan = memory.lend(&[3, 3], 2);
    plan.push_set(&[0, 2])?;
    plan.push_set(&[0, 2])?;
    change(&mut plan)?;
    plan.validate(&[3, 3])
}

#[test]
fn changes_that_cannot_be_are_refused() {
    let merge = |kv_head, into, from| Merge {
        kv_head,
        into,
        from,
        value_weight: 0.5,
    };
    assert_eq!(changed(|plan| plan.push_merge(merge(1, 2, 1))), Ok(()));
    for wrong in [
        merge(2, 0, 1),
        merge(0, 1, 1),
        merge(0, 0, 2),
        merge(0, 0, 3),
        Merge {
            value_weight: f32::NAN,
            ..merge(0, 0, 1)
        },
    ] {
        assert!(
            matches!(changed(|plan| plan.push_merge(wrong)), Err(PlanError::Merge(_))),
            "{wrong:?}"
        );
    }
    let twice = changed(|plan| {
        plan.push_merge(merge(1, 0, 1))?;
        plan.push_merge(merge(0, 0, 1))
    });
    assert!(matches!(twice, Err(PlanError::Merge(_))));
    assert!(changed(|plan| plan.push_history(&[0.0; 5])).is_err());
    assert!(changed(|plan| plan.push_history(&[f32::INFINITY; 6])).is_err());
    assert!(
        changed(|plan| plan.push_history(&[0.0; 7])).is_err(),
        "more than there is room for"
    );
    let shifted = |shifts: [f32; 3]| {
        changed(|plan| {
            plan.push_shifts(&[1.0, 0.0], &shifts)?;
            plan.push_shifts(&[1.0, 0.0], &[0.0; 3])
        })
    };
    assert_eq!(shifted([1.0, 0.0, 1.0]), Ok(()));
    assert!(shifted([0.0, 1.0, 0.0]).is_err(), "a dropped candidate's key");
    assert!(shifted([f32::NAN, 0.0, 0.0]).is_err());
    let no_keys = LayerView {
        head_dim: 8,
        candidates: &[4],
        scores: &[0.0; 4],
        ..LayerView::default()
    };
    for kind in [PolicyKind::RKv, PolicyKind::Lookahead, PolicyKind::LookaheadMerge] {
        let policy = kind.build(options(4, 1, 2)).unwrap();
        let answer = policy.plan(&no_keys, &mut PlanMemory::default().lend(&[4], 8));
        assert!(answer.is_err(), "{kind:?} without what its spec asks for");
    }
}

/// Two KV heads, one kept set: means of scores and redundancies, history per KV head, norms before the mean.
#[test]
fn rpc_weighs_and_averages_over_a_layer() {
    let options = RpcOptions {
        pooling: Pooling::None,
        history: Some(0.5),
        value_norms: true,
        ..options(4, 1, 4)
    };
    let policy = PolicyKind::Rpc.build(options).unwrap();
    let view = LayerView {
        head_dim: 2,
        candidates: &[4, 4],
        scores: &[1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0],
        history: &[2.0, 0.0, 0.0, 0.0, 0.0, 8.0, 0.0, 0.0],
        value_norms: &[1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 0.5],
        ..LayerView::default()
    };
    let mut memory = PlanMemory::default();
    let mut plan = memory.lend(view.candidates, 2);
    policy.plan(&view, &mut plan).unwrap();
    plan.validate(view.candidates).unwrap();
    // Sums: 2 + 2, 2 + 5, 3 + 3, 4 + 0.5.
    assert_eq!((plan.sets(), plan.set(0)), (1, &[1u32][..]));
    assert_eq!(plan.history(), [2.0, 2.0, 3.0, 4.0, 1.0, 5.0, 1.0, 1.0]);

    // Entry 1 is the best, and the copy of 0 and 3 in both heads.
    let options = RpcOptions {
        history: None,
        value_norms: false,
        redundancy: 0.9,
        ..options
    };
    let policy = PolicyKind::Rpc.build(options).unwrap();
    let head = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
    let view = LayerView {
        scores: &[0.5, 1.0, 0.9, 0.5, 0.5, 1.0, 0.9, 0.5],
        keys: &[head, head].concat(),
        history: &[],
        value_norms: &[],
        ..view
    };
    let mut plan = memory.lend(view.candidates, 2);
    policy.plan(&view, &mut plan).unwrap();
    assert_eq!((plan.sets(), plan.set(0)), (1, &[2u32][..]));
    for bad in [-0.1, 1.5, f32::NAN] {
        for options in [
            RpcOptions {
                history: Some(bad),
                ..options
            },
            RpcOptions {
                redundancy: bad,
                ..options
            },
        ] {
            let error = PolicyKind::Rpc.build(options).err().unwrap().to_string();
            assert!(error.contains("expected 0 to 1"), "{error}");
        }
    }
}

/// Queries of long intervals take more memory than the cache; whoever names a form gets it.
#[test]
fn queries_of_long_intervals_are_asked_online() {
    let stored = |interval, queries| {
        let options = RpcOptions {
            interval,
            queries,
            ..RpcOptions::default()
        };
        let policy = PolicyKind::LookaheadMerge.build(options).unwrap();
        let (spec, (_, recipe)) = (policy.spec(), policy.recipe().unwrap());
        assert_eq!(spec.attention.is_some(), recipe.queries == Queries::Online);
        assert_eq!(spec.scores.is_none(), recipe.queries == Queries::Online);
        spec.counted_queries()
    };
    for interval in [64, 256, 260, 4096] {
        let short = interval <= 256;
        assert_eq!(stored(interval, Queries::Auto), if short { interval } else { 0 });
        assert_eq!(stored(interval, Queries::Stored), interval);
        assert_eq!(stored(interval, Queries::Online), 0);
    }
}
