//! Steps: what fails, and what is left as it was.

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, LayerPlan, LayerView, PlanError, Policy, Spec};
use reasoning_rpc_test_support::{Random, seed};

use super::{none, prompt, rpc, run_pending, start, tiny, write};
use crate::error::Error;
use crate::runner::{CachedRunner, Runner, Step, StepRow};
use crate::runtime::{self, Fault};
use crate::{Engine, Sequence};

/// A runner of its own, with a step of three tokens for `sequence`.
fn prepared(engine: &Engine, sequence: &mut Sequence) -> (CachedRunner, Step) {
    let environment = runtime::load(None).unwrap();
    let graph = engine.model().graph_path();
    let runner = CachedRunner::open(&environment, &graph, 2, engine.simd(), 96, None).unwrap();
    let mut cache = sequence.cache.take().unwrap();
    cache.grow(3).unwrap();
    let mut step = Step::default();
    step.clear();
    step.ids.extend([1, 2, 3]);
    step.positions.extend([0, 1, 2]);
    step.row_offsets.push(3);
    step.slots.push(sequence.slot);
    step.logits_rows.push(2);
    step.rows.push(StepRow {
        slot: sequence.slot,
        cache,
        first_generated: None,
        attention: None,
    });
    (runner, step)
}

#[test]
fn a_stale_slot_is_an_error_of_the_operator() {
    let engine = tiny(|_| {});
    let mut live = start(&engine, none(), &[1, 2, 3]);
    let stale = start(&engine, none(), &[4]).slot;
    let (mut runner, mut step) = prepared(&engine, &mut live);
    step.slots[0] = stale;
    let error = runner.run(&mut step).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument(text) if text.contains("stale or foreign")),
        "{error}"
    );
    // The runner goes on with the right one, and the cache came back.
    step.slots[0] = live.slot;
    runner.run(&mut step).unwrap();
    live.cache = step.rows.pop().map(|row| row.cache);
    run_pending(&engine, &mut live);
}

#[test]
fn a_panic_in_the_operator_is_an_error_and_the_runner_goes_on() {
    let engine = tiny(|_| {});
    let mut sequence = start(&engine, none(), &[1, 2, 3]);
    let (mut runner, mut step) = prepared(&engine, &mut sequence);
    runner.run(&mut step).unwrap();
    let expected = step.logits.clone();
    for fault in [Fault::Node, Fault::Worker] {
        runner.plant(Some(fault));
        let error = runner.run(&mut step).unwrap_err();
        let text = format!("planted in a {fault:?}");
        assert!(
            matches!(&error, Error::Internal(found) if found.contains(&text)),
            "{error}"
        );
        assert_eq!(step.rows.len(), 1, "the cache came back");
        runner.plant(None);
        runner.run(&mut step).unwrap();
        assert_eq!(step.logits, expected);
    }
}

/// A graph that panics.
struct Panicking;

impl Runner for Panicking {
    fn run(&mut self, _: &mut Step) -> crate::Result<()> {
        panic!("on purpose");
    }
}

#[test]
fn a_panic_in_a_step_poisons_its_sequences_and_no_other() {
    let engine = tiny(|_| {});
    let mut hurt = [1, 2].map(|token| start(&engine, none(), &[token]));
    let mut sound = start(&engine, none(), &[3]);
    let swap = |runner: Box<dyn Runner>| {
        let mut driver = engine.shared.driver.lock().unwrap();
        std::mem::replace(&mut driver.runner, runner)
    };
    let runner = swap(Box::new(Panicking));
    let error = engine.step(&mut hurt.each_mut()).unwrap_err();
    assert!(
        matches!(&error, Error::Internal(text) if text.contains("on purpose")),
        "{error}"
    );
    swap(runner);
    for sequence in &mut hurt {
        assert_eq!(sequence.sample(), Err(Error::Poisoned));
        assert_eq!(sequence.append_tokens(&[1]), Err(Error::Poisoned));
        assert_eq!(engine.step(&mut [sequence]), Err(Error::Poisoned));
    }
    drop(hurt);
    write(&engine, &mut sound, 20);
    drop(sound);
    assert_eq!(engine.budget().1, 0, "all blocks came back");
}

/// A policy that panics, and one whose plan names what is not there.
struct Broken {
    inner: Arc<dyn Policy>,
    panics: bool,
}

impl Policy for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn spec(&self) -> Spec {
        self.inner.spec()
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.inner.peak_generated(generated)
    }

    fn plan(&self, _: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        assert!(!self.panics, "on purpose");
        plan.push_set(&[0, 1_000_000])
    }
}

#[test]
fn a_broken_policy_poisons_its_sequence_and_no_other() {
    let engine = tiny(|_| {});
    for (panics, text) in [(true, "on purpose"), (false, "found 1000000")] {
        let inner = rpc(16, 4, 2, Aggregation::Layer);
        let mut broken = start(&engine, Arc::new(Broken { inner, panics }), &[1, 2, 3]);
        let mut sound = start(&engine, rpc(16, 4, 2, Aggregation::Layer), &[1, 2, 3]);
        let mut error = None;
        for _ in 0..21 {
            match engine.step(&mut [&mut broken, &mut sound]) {
                Ok(()) => {
                    broken.sample().unwrap();
                    sound.sample().unwrap();
                }
                Err(found) => error = Some(found),
            }
        }
        let error = error.unwrap();
        assert!(
            matches!(&error, Error::Internal(found) if found.contains(text)),
            "{error}"
        );
        assert_eq!(broken.sample(), Err(Error::Poisoned));
        assert_eq!(broken.append_tokens(&[1]), Err(Error::Poisoned));
        drop(broken);
        write(&engine, &mut sound, 40);
        assert_eq!(sound.stats().compressions, 3);
    }
    assert_eq!(engine.budget().1, 0, "all blocks came back");
}

#[test]
fn a_full_pool_refuses_a_step_and_loses_nothing() {
    let mut random = Random::new(seed());
    // 3 layers * 2 KV heads * 4 blocks of 16 entries.
    let engine = tiny(|options| options.budget = Some(6 * 4 * 16 * (2 * 16 * 4 + 4)));
    let mut first = start(&engine, none(), &prompt(&mut random, 40));
    run_pending(&engine, &mut first);
    let mut second = start(&engine, none(), &prompt(&mut random, 10));
    run_pending(&engine, &mut second);
    write(&engine, &mut second, 7);
    let before = second.tokens().to_vec();
    let error = engine.step(&mut [&mut second]).unwrap_err();
    assert!(
        matches!(error, Error::Budget { needed, available: 0, .. } if needed == 6 * 16 * 132),
        "{error}"
    );
    drop(first);
    run_pending(&engine, &mut second);
    assert_eq!(second.tokens(), before);
}

#[test]
fn a_promise_is_exact() {
    let entry = 2 * 16 * 4 + 4;
    // A prompt of 20 and 4097 - 1 written tokens would be beyond the context of 4096: take 2000.
    let policy = rpc(256, 32, 4, Aggregation::Layer);
    let entries = 20 + policy.peak_generated(1999);
    let bytes = 6 * entries.div_ceil(16) * 16 * entry;
    let engine = tiny(|options| options.budget = Some(bytes));
    let mut sequence = start(&engine, policy, &[7; 20]);
    sequence.reserve(2000).unwrap();
    let needed = 1 + 16 * (entries.div_ceil(16) - entries / 16);
    assert!(
        sequence.reserve(2000 + 256 * needed).is_err(),
        "one block more is refused"
    );
    sequence.reserve(2000).unwrap();
    write(&engine, &mut sequence, 2000);
    assert_eq!(sequence.stats().cache_peak_bytes, bytes);
    let mut other = start(&engine, none(), &[1]);
    assert!(
        other.reserve(1).is_err(),
        "what is promised is not given to another"
    );
    drop(sequence);
    other.reserve(1).unwrap();
}

#[test]
fn steps_without_work_are_refused() {
    let (engine, other) = (tiny(|_| {}), tiny(|_| {}));
    assert!(matches!(engine.step(&mut []), Err(Error::InvalidArgument(_))));
    let mut empty = start(&engine, none(), &[]);
    assert!(matches!(
        engine.step(&mut [&mut empty]),
        Err(Error::InvalidArgument(_))
    ));
    assert!(matches!(empty.sample(), Err(Error::InvalidArgument(_))));
    assert!(matches!(empty.accept(3), Err(Error::InvalidArgument(_))));
    let mut foreign = start(&other, none(), &[1]);
    assert!(matches!(
        engine.step(&mut [&mut foreign]),
        Err(Error::InvalidArgument(_))
    ));
    let error = empty.append_tokens(&[3, 96]).unwrap_err().to_string();
    assert!(error.contains("expected 0 to 95, found 96"), "{error}");
    let error = empty.append_tokens(&[1; 4097]).unwrap_err();
    assert_eq!(
        error,
        Error::Context {
            needed: 4097,
            context: 4096
        }
    );
    assert!(empty.tokens().is_empty(), "nothing was appended");
}
