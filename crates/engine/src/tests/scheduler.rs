//! The scheduler: who waits for whom, and who does not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reasoning_rpc_core::{
    Aggregation, LayerPlan, LayerView, PlanError, Policy, PolicyKind, RpcOptions, Spec,
};
use reasoning_rpc_test_support::{Random, seed};

use super::{none, outcome, prompt, rpc, start, tiny, write};
use crate::runner::{Runner, Step};
use crate::scheduler::{Next, ScheduledAnswer, Scheduler, SchedulerMetrics, SchedulerOptions};
use crate::{Engine, Error, Event, GenerateOptions, Sequence, StopReason};

fn at_most(tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

fn scheduler(engine: &Engine, change: impl FnOnce(&mut SchedulerOptions)) -> Scheduler {
    let mut options = SchedulerOptions::default();
    change(&mut options);
    Scheduler::new(engine, options).unwrap()
}

/// All tokens that are still to be read, and how it ended.
fn read(answer: &ScheduledAnswer) -> crate::Result<(Vec<u32>, StopReason)> {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    loop {
        match answer.next(&mut text, Some(Duration::from_secs(60)))? {
            Next::Event(Event::Token { id, .. }) => tokens.push(id),
            Next::Event(Event::End { reason, .. }) => return Ok((tokens, reason)),
            Next::Event(Event::Prefill { .. }) => {}
            other => panic!("no event: {other:?}"),
        }
    }
}

/// Waits for a state that must come.
fn until(scheduler: &Scheduler, state: impl Fn(&SchedulerMetrics) -> bool) {
    let start = Instant::now();
    while !state(&scheduler.metrics()) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{:?}",
            scheduler.metrics()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn until_free(engine: &Engine) {
    let start = Instant::now();
    while engine.budget().1 > 0 || engine.metrics().budget_promised_bytes > 0 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{:?}",
            engine.metrics()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes of so many blocks of 16 entries for every layer and KV head of the tiny model.
fn blocks(count: usize) -> usize {
    6 * count * 16 * (2 * 16 * 4 + 4)
}

/// What the text is when nothing else runs.
fn alone(policy: Arc<dyn Policy>, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let engine = tiny(|_| {});
    let mut sequence = start(&engine, policy, prompt);
    write(&engine, &mut sequence, tokens)
}

#[test]
fn the_head_of_the_queue_is_not_overtaken() {
    // Four blocks: one answer of 60 tokens.
    let engine = tiny(|options| options.budget = Some(blocks(4)));
    let scheduler = scheduler(&engine, |options| options.queue_events = 2);
    let submit = |tokens| {
        scheduler
            .submit(start(&engine, none(), &[1, 2]), &at_most(tokens))
            .unwrap()
    };
    let first = submit(60);
    until(&scheduler, |figures| figures.paused == 1);
    let second = submit(60);
    let third = submit(1); // would fit, but for the one before it
    assert_eq!(scheduler.metrics().waiting, 2);
    let mut text = String::new();
    for answer in [&second, &third] {
        assert_eq!(answer.try_next(&mut text), Ok(Next::Pending));
    }
    assert_eq!(
        read(&first).unwrap(),
        (alone(none(), &[1, 2], 60), StopReason::Length)
    );
    // Its sequence still has its cache.
    assert_eq!(second.try_next(&mut text), Ok(Next::Pending));
    assert_eq!(scheduler.metrics().admitted, 1);
    drop(first);
    assert_eq!(read(&second).unwrap().0.len(), 60);
    drop(second.into_sequence().unwrap());
    assert_eq!(read(&third).unwrap().0.len(), 1);
    drop(third);
    until_free(&engine);
    assert!(scheduler.metrics().waiting_time > Duration::ZERO);
}

#[test]
fn what_can_never_fit_is_refused_when_it_is_submitted() {
    let engine = tiny(|options| options.budget = Some(blocks(4)));
    let scheduler = scheduler(&engine, |_| {});
    let refused = scheduler
        .submit(start(&engine, none(), &[1, 2]), &at_most(64))
        .err()
        .unwrap();
    let (needed, available) = (blocks(5), blocks(4));
    assert_eq!(
        refused.error,
        Error::Budget {
            needed,
            queries: 0,
            available
        }
    );
    // Its sequence came back, and fits with fewer tokens: 2 + 62 entries, and one that is not written.
    let answer = scheduler.submit(*refused.sequence, &at_most(63)).unwrap();
    assert_eq!(read(&answer).unwrap().0.len(), 63);
    let empty = scheduler.submit(start(&engine, none(), &[]), &at_most(1));
    assert!(matches!(empty.err().unwrap().error, Error::InvalidArgument(_)));
    let other = tiny(|_| {});
    let foreign = scheduler.submit(start(&other, none(), &[1]), &at_most(1));
    assert!(matches!(foreign.err().unwrap().error, Error::InvalidArgument(_)));
    assert_eq!(scheduler.metrics().submitted, 1);
}

/// The queries that a policy stores are promised with the cache.
#[test]
fn answers_wait_for_the_queries_of_others() {
    let policy = || {
        let options = RpcOptions {
            interval: 24,
            window: 6,
            aggregation: Some(Aggregation::KvHead),
            ..RpcOptions::default()
        };
        PolicyKind::Lookahead.build(options).unwrap()
    };
    // 3 layers of 24 tokens' 4 heads of 16 float32: 9 blocks of 16 entries, of which a token has one in each of 6 heads.
    let block = blocks(1) / 6;
    let budget = 2 * blocks(3) + (9 + 2) * block;
    let engine = tiny(|options| options.budget = Some(budget));
    let scheduler = scheduler(&engine, |_| {});
    // At most 36 generated entries, and 2 given ones, in 3 blocks of each head; 2 blocks at the end, and the queries. So the
    // cache of two would fit, with the queries of one.
    let answers = [1u32, 2, 3].map(|token| {
        let sequence = start(&engine, policy(), &[token; 2]);
        (token, scheduler.submit(sequence, &at_most(60)).unwrap())
    });
    for (token, answer) in answers {
        let (tokens, _) = read(&answer).unwrap();
        assert_eq!(tokens, alone(policy(), &[token; 2], 60));
        assert!(engine.metrics().budget_peak_bytes <= (blocks(3) + 9 * block) as u64);
        let mut sequence = answer.into_sequence().unwrap();
        assert_eq!(sequence.reserve(0), Ok(()));
        drop(sequence);
    }
    until_free(&engine);

    let small = tiny(|options| options.budget = Some(blocks(1) + 8 * block));
    let scheduler = self::scheduler(&small, |_| {});
    let refused = scheduler
        .submit(start(&small, policy(), &[1, 2]), &at_most(10))
        .err()
        .unwrap();
    let (needed, queries) = (blocks(1) + 9 * block, 9 * block);
    let available = blocks(1) + 8 * block;
    assert_eq!(
        refused.error,
        Error::Budget {
            needed,
            queries,
            available
        }
    );
}

#[test]
fn a_head_that_waits_for_those_behind_it_is_refused() {
    let engine = tiny(|options| options.budget = Some(blocks(4)));
    let scheduler = scheduler(&engine, |options| options.queue_events = 2);
    let mut both = [1u32, 2].map(|token| start(&engine, none(), &[token; 20]));
    for sequence in &mut both {
        write(&engine, sequence, 1); // two blocks each
    }
    let [first, second] = both.map(|sequence| scheduler.submit(sequence, &at_most(30)).unwrap());
    assert!(matches!(read(&first), Err(Error::Budget { .. })));
    assert!(matches!(read(&first), Err(Error::Budget { .. })), "told again");
    // The sequence is well; without it the other goes on.
    let sequence = first.into_sequence().unwrap();
    assert_eq!(sequence.tokens().len(), 21);
    drop(sequence);
    assert_eq!(read(&second).unwrap().0.len(), 30);
    assert_eq!(scheduler.metrics().failed, 1);
}

#[test]
fn blocks_that_are_freed_outside_let_the_head_in() {
    let engine = tiny(|options| options.budget = Some(blocks(4)));
    let scheduler = scheduler(&engine, |_| {});
    let mut outside = start(&engine, none(), &[3; 40]);
    write(&engine, &mut outside, 1);
    let answer = scheduler
        .submit(start(&engine, none(), &[1]), &at_most(20))
        .unwrap();
    let mut text = String::new();
    let waited = answer.next(&mut text, Some(Duration::from_millis(50)));
    assert_eq!(waited, Ok(Next::Pending));
    drop(outside);
    assert_eq!(read(&answer).unwrap().0, alone(none(), &[1], 20));
    // A promise that is given back does, too.
    let mut outside = start(&engine, none(), &[3]);
    drop(answer);
    until_free(&engine);
    outside.reserve(60).unwrap();
    let answer = scheduler
        .submit(start(&engine, none(), &[1]), &at_most(20))
        .unwrap();
    assert_eq!(answer.try_next(&mut text), Ok(Next::Pending));
    outside.reserve(0).unwrap_or_default();
    outside.reserve(1).unwrap();
    assert_eq!(read(&answer).unwrap().0.len(), 20);
}

#[test]
fn a_reader_that_does_not_read_delays_nobody_else() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |options| {
        options.queue_events = 3;
        options.max_rows = 1;
    });
    let slow = scheduler
        .submit(start(&engine, none(), &[1, 2, 3]), &at_most(100))
        .unwrap();
    until(&scheduler, |figures| figures.paused == 1);
    // It takes no row either: there is but one.
    let quick = scheduler
        .submit(start(&engine, none(), &[4, 5]), &at_most(200))
        .unwrap();
    assert_eq!(read(&quick).unwrap().0, alone(none(), &[4, 5], 200));
    assert_eq!(scheduler.metrics().paused, 1);
    assert_eq!(
        read(&slow).unwrap(),
        (alone(none(), &[1, 2, 3], 100), StopReason::Length)
    );
    let mut text = String::new();
    assert_eq!(slow.next(&mut text, None), Ok(Next::Ended));
}

/// A policy whose compressions begin when it is let.
struct Gate {
    inner: Arc<dyn Policy>,
    begun: AtomicUsize,
    open: Mutex<()>,
}

impl Policy for Gate {
    fn name(&self) -> &str {
        "gate"
    }

    fn spec(&self) -> Spec {
        self.inner.spec()
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.inner.peak_generated(generated)
    }

    fn plan(&self, view: &LayerView<'_>, plan: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        drop(self.open.lock());
        self.inner.plan(view, plan)
    }
}

#[test]
fn rows_do_not_wait_for_anothers_compression() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |_| {});
    let inner = rpc(16, 4, 2, Aggregation::Layer);
    let gate = Arc::new(Gate {
        inner: Arc::clone(&inner),
        begun: AtomicUsize::new(0),
        open: Mutex::new(()),
    });
    let closed = gate.open.lock().unwrap();
    let compressed = scheduler
        .submit(start(&engine, Arc::clone(&gate) as _, &[1, 2, 3]), &at_most(40))
        .unwrap();
    until(&scheduler, |figures| figures.compressing == 1);
    let other = scheduler
        .submit(start(&engine, none(), &[4, 5]), &at_most(300))
        .unwrap();
    assert_eq!(read(&other).unwrap().0, alone(none(), &[4, 5], 300));
    assert_eq!(gate.begun.load(Ordering::Relaxed), 1);
    drop(closed);
    assert_eq!(
        read(&compressed).unwrap().0,
        alone(Arc::clone(&inner), &[1, 2, 3], 40)
    );
    // The last compression is due with the last token's run: as alone.
    let sequence = compressed.into_sequence().unwrap();
    let mut expected = start(&engine, inner, &[1, 2, 3]);
    write(&engine, &mut expected, 40);
    assert_eq!(outcome(&sequence), outcome(&expected));
}

#[test]
fn cancelling_ends_answers_wherever_they_are() {
    let engine = tiny(|options| options.budget = Some(blocks(8)));
    let scheduler = scheduler(&engine, |options| options.queue_events = 2);
    let gate = Arc::new(Gate {
        inner: rpc(4, 1, 2, Aggregation::Layer),
        begun: AtomicUsize::new(0),
        open: Mutex::new(()),
    });
    let closed = gate.open.lock().unwrap();
    let paused = scheduler
        .submit(start(&engine, none(), &[1]), &at_most(60))
        .unwrap();
    let compressing = scheduler
        .submit(start(&engine, Arc::clone(&gate) as _, &[1]), &at_most(60))
        .unwrap();
    let mut text = String::new();
    let start_time = Instant::now();
    while scheduler.metrics().compressing == 0 {
        assert!(start_time.elapsed() < Duration::from_secs(60));
        let _ = compressing.try_next(&mut text);
    }
    let waiting = scheduler
        .submit(start(&engine, none(), &[1]), &at_most(120))
        .unwrap();
    until(&scheduler, |figures| (figures.paused, figures.waiting) == (1, 1));
    for answer in [&paused, &waiting, &compressing] {
        answer.cancel();
        answer.cancel();
    }
    assert_eq!(read(&waiting).unwrap(), (vec![], StopReason::Cancelled));
    let (tokens, reason) = read(&paused).unwrap();
    assert_eq!(reason, StopReason::Cancelled);
    // What was read is what the sequence has.
    let sequence = paused.into_sequence().unwrap();
    assert_eq!(sequence.tokens()[1..], tokens);
    assert_eq!(
        compressing.try_next(&mut text).map(|next| next == Next::Ended),
        Ok(false)
    );
    drop(closed);
    assert_eq!(read(&compressing).unwrap().1, StopReason::Cancelled);
    drop((sequence, waiting, compressing));
    until_free(&engine);
    assert_eq!(scheduler.metrics().cancelled, 3);

    // Dropping is cancelling, and gives all blocks back.
    for tokens in [60, 30, 120, 1] {
        drop(scheduler.submit(start(&engine, none(), &[1]), &at_most(tokens)));
    }
    until_free(&engine);
}

#[test]
fn a_sequence_that_nobody_wants_is_freed_before_its_answer_is_read() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |_| {});
    let answer = scheduler
        .submit(start(&engine, none(), &[1, 2]), &at_most(20))
        .unwrap();
    answer.free_sequence();
    until_free(&engine);
    assert_eq!(read(&answer).unwrap().0.len(), 20);
    assert!(answer.take_sequence().is_none());
}

#[test]
fn a_sequence_goes_on_after_its_answer() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |_| {});
    let policy = || rpc(16, 4, 2, Aggregation::KvHead);
    let mut sequence = start(&engine, policy(), &[1, 2]);
    let mut expected = start(&engine, policy(), &[1, 2]);
    for turn in 0..4u32 {
        let answer = scheduler.submit(sequence, &at_most(23)).unwrap();
        assert_eq!(read(&answer).unwrap().0, write(&engine, &mut expected, 23));
        sequence = answer.take_sequence().unwrap();
        assert_eq!(outcome(&sequence), outcome(&expected));
        for sequence in [&mut sequence, &mut expected] {
            sequence.append_tokens(&[turn; 5]).unwrap();
        }
    }
}

/// For each step, the tokens of each row, by slot.
type Steps = Arc<Mutex<Vec<Vec<(i64, usize)>>>>;

/// Refuses to run with some slot, in the worst way; notes what it runs.
struct Watched {
    inner: Box<dyn Runner>,
    broken: Option<i64>,
    steps: Steps,
}

impl Runner for Watched {
    fn run(&mut self, step: &mut Step) -> crate::Result<()> {
        let tokens = step
            .row_offsets
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as usize);
        let rows = step.slots.iter().copied().zip(tokens).collect();
        self.steps.lock().unwrap().push(rows);
        assert!(
            self.broken.is_none_or(|broken| !step.slots.contains(&broken)),
            "on purpose"
        );
        self.inner.run(step)
    }
}

fn watch(engine: &Engine, broken: Option<i64>) -> Steps {
    struct Nothing;
    impl Runner for Nothing {
        fn run(&mut self, _: &mut Step) -> crate::Result<()> {
            Ok(())
        }
    }
    let steps = Steps::default();
    let mut driver = engine.shared.driver.lock().unwrap();
    let inner = std::mem::replace(&mut driver.runner, Box::new(Nothing));
    driver.runner = Box::new(Watched {
        inner,
        broken,
        steps: Arc::clone(&steps),
    });
    steps
}

#[test]
fn a_panic_in_a_step_ends_the_answer_that_it_is_of_and_no_other() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |options| options.queue_events = 1);
    let sequences = [1u32, 2, 3].map(|token| start(&engine, none(), &[token; 3]));
    watch(&engine, Some(sequences[1].slot));
    let answers = sequences.map(|sequence| scheduler.submit(sequence, &at_most(50)).unwrap());
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = answers
            .iter()
            .map(|answer| scope.spawn(|| read(answer)))
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    for token in [1u32, 3] {
        let expected = alone(none(), &[token; 3], 50);
        assert_eq!(outcomes[token as usize - 1], Ok((expected, StopReason::Length)));
    }
    let error = outcomes[1].clone().unwrap_err();
    assert!(
        matches!(&error, Error::Internal(text) if text.contains("on purpose")),
        "{error}"
    );
    let [_, broken, _] = answers;
    assert_eq!(broken.into_sequence().unwrap().sample(), Err(Error::Poisoned));
}

/// A policy that panics.
struct Panicking(Arc<dyn Policy>);

impl Policy for Panicking {
    fn name(&self) -> &str {
        "panicking"
    }

    fn spec(&self) -> Spec {
        self.0.spec()
    }

    fn peak_generated(&self, generated: usize) -> usize {
        self.0.peak_generated(generated)
    }

    fn plan(&self, _: &LayerView<'_>, _: &mut LayerPlan<'_>) -> Result<(), PlanError> {
        panic!("on purpose");
    }
}

#[test]
fn a_panic_in_a_compression_ends_the_answer_that_it_is_of_and_no_other() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |_| {});
    let policy = rpc(16, 4, 2, Aggregation::Layer);
    let broken = start(&engine, Arc::new(Panicking(Arc::clone(&policy))), &[1, 2]);
    let sound = start(&engine, Arc::clone(&policy), &[1, 2]);
    let [broken, sound] = [broken, sound].map(|sequence| scheduler.submit(sequence, &at_most(100)).unwrap());
    assert!(matches!(read(&broken), Err(Error::Internal(text)) if text.contains("on purpose")));
    assert_eq!(read(&sound).unwrap().0, alone(policy, &[1, 2], 100));
    drop((broken, sound));
    until_free(&engine);
    assert_eq!(
        (scheduler.metrics().failed, scheduler.metrics().completed),
        (1, 1)
    );
}

#[test]
fn rows_that_generate_go_on_beside_a_long_prompt() {
    let mut random = Random::new(seed());
    let engine = tiny(|options| options.prefill_chunk = 100);
    let steps = watch(&engine, None);
    let scheduler = scheduler(&engine, |options| {
        options.step_tokens = 12;
        // It never waits for its reader, or the prompt would go on alone.
        options.queue_events = 4096;
    });
    let short = start(&engine, none(), &[1]);
    let slot = short.slot;
    let short = scheduler.submit(short, &at_most(3000)).unwrap();
    let mut text = String::new();
    for _ in 0..4 {
        short.next(&mut text, None).unwrap(); // it generates
    }
    let long = prompt(&mut random, 300);
    let long = scheduler
        .submit(start(&engine, none(), &long), &at_most(3))
        .unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&short));
        assert_eq!(read(&long).unwrap().0.len(), 3);
        short.cancel();
        reader.join().unwrap().unwrap();
    });
    let steps = steps.lock().unwrap();
    let shared: Vec<_> = steps.iter().filter(|rows| rows.len() == 2).collect();
    assert!(shared.len() >= 300 / 11, "{} steps", shared.len());
    for rows in shared {
        let row = |of: bool| rows.iter().find(|row| (row.0 == slot) == of).unwrap().1;
        assert!(row(true) == 1 && row(false) <= 11, "{rows:?}");
    }
    // Alone, prompts take the engine's chunks.
    drop(steps);
    let steps = watch(&engine, None);
    let answer = scheduler
        .submit(start(&engine, none(), &prompt(&mut random, 250)), &at_most(1))
        .unwrap();
    read(&answer).unwrap();
    let sizes: Vec<usize> = steps.lock().unwrap().iter().map(|rows| rows[0].1).collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn rows_beyond_the_most_take_turns() {
    let engine = tiny(|_| {});
    let scheduler = scheduler(&engine, |options| {
        options.max_rows = 2;
        options.queue_events = 2;
    });
    // Five are admitted, one after the other, since those before wait for their readers.
    let answers: Vec<_> = (0..5u32)
        .map(|token| {
            let answer = scheduler
                .submit(start(&engine, none(), &[token, 7]), &at_most(60))
                .unwrap();
            until(&scheduler, |figures| figures.paused == u64::from(token) + 1);
            answer
        })
        .collect();
    let steps = watch(&engine, None);
    std::thread::scope(|scope| {
        for (token, answer) in (0..5u32).zip(&answers) {
            scope.spawn(move || assert_eq!(read(answer).unwrap().0, alone(none(), &[token, 7], 60)));
        }
    });
    assert!(steps.lock().unwrap().iter().all(|rows| rows.len() <= 2));
}

#[test]
fn a_full_queue_refuses() {
    let engine = tiny(|options| options.budget = Some(blocks(4)));
    let scheduler = scheduler(&engine, |options| {
        options.max_waiting = 2;
        options.queue_events = 1;
    });
    let submit = || scheduler.submit(start(&engine, none(), &[1]), &at_most(60));
    let first = submit().unwrap();
    until(&scheduler, |figures| figures.paused == 1);
    let waiting = [submit().unwrap(), submit().unwrap()];
    let refused = submit().err().unwrap();
    assert!(
        matches!(&refused.error, Error::Busy(text) if text.contains("at most 2")),
        "{refused:?}"
    );
    drop(waiting);
    until(&scheduler, |figures| figures.waiting == 0);
    let again = scheduler.submit(*refused.sequence, &at_most(60)).unwrap();
    drop(first);
    read(&again).unwrap();
}

#[test]
fn shutting_down_ends_everything_and_leaves_what_was_written() {
    let engine = tiny(|options| options.budget = Some(blocks(8)));
    let scheduler = scheduler(&engine, |options| options.queue_events = 4);
    let submit = |tokens| scheduler.submit(start(&engine, none(), &[1]), &at_most(tokens));
    let answers = [60, 60, 60, 60].map(|tokens| submit(tokens).unwrap());
    until(&scheduler, |figures| (figures.paused, figures.waiting) == (2, 2));
    scheduler.shut_down();
    scheduler.shut_down();
    for (index, answer) in answers.iter().enumerate() {
        let (tokens, reason) = read(answer).unwrap();
        assert_eq!(reason, StopReason::Cancelled);
        assert_eq!(tokens.is_empty(), index > 1);
        assert_eq!(answer.take_sequence().unwrap().tokens()[1..], tokens);
    }
    let refused = submit(1).err().unwrap();
    assert!(matches!(&refused.error, Error::InvalidArgument(text) if text.contains("shut down")));
    assert_eq!(scheduler.metrics().waiting, 0);
    drop((scheduler, answers, refused));
    assert_eq!(engine.budget().1, 0);
}

#[test]
fn dropping_a_scheduler_at_any_moment_ends() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    for _ in 0..100 {
        let scheduler = scheduler(&engine, |options| options.queue_events = 1 + random.below(4));
        let answers: Vec<ScheduledAnswer> = (0..random.below(5))
            .map(|_| {
                let policy = rpc(8, 2, 2, Aggregation::Layer);
                scheduler
                    .submit(start(&engine, policy, &[1]), &at_most(random.below(40)))
                    .unwrap()
            })
            .collect();
        std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
        let sequences: Vec<Sequence> = answers
            .into_iter()
            .filter(|_| random.below(2) == 0)
            .filter_map(ScheduledAnswer::into_sequence)
            .collect();
        drop(scheduler);
        assert!(sequences.iter().all(|sequence| !sequence.tokens().is_empty()));
    }
    until_free(&engine);
}

fn poll(fd: i32, milliseconds: i32) -> bool {
    let mut one = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut one, 1, milliseconds) == 1 }
}

#[test]
fn the_descriptor_is_readable_while_there_is_something_to_read() {
    let engine = tiny(|options| options.budget = Some(blocks(4)));
    let scheduler = scheduler(&engine, |_| {});
    let mut outside = start(&engine, none(), &[3; 40]);
    write(&engine, &mut outside, 1);
    let answer = scheduler
        .submit(start(&engine, none(), &[1]), &at_most(20))
        .unwrap();
    let fd = answer.event_fd().unwrap();
    assert_eq!(answer.event_fd().unwrap(), fd);
    assert!(!poll(fd, 20));
    drop(outside);
    let (mut tokens, mut text) = (0, String::new());
    loop {
        assert!(poll(fd, 60_000));
        assert!(poll(fd, 0), "it stays so until it is read");
        match answer.try_next(&mut text).unwrap() {
            Next::Event(Event::Token { .. }) => tokens += 1,
            Next::Event(Event::End { .. }) => break,
            next => assert!(matches!(next, Next::Event(Event::Prefill { .. }))),
        }
    }
    assert_eq!(tokens, 20);
    assert!(!poll(fd, 0));
    // One that is asked for late knows what is there; a failure is told once.
    let broken = Arc::new(Panicking(rpc(4, 1, 2, Aggregation::Layer)));
    let answer = scheduler
        .submit(start(&engine, broken, &[1]), &at_most(20))
        .unwrap();
    until(&scheduler, |figures| figures.failed == 1);
    let fd = answer.event_fd().unwrap();
    while poll(fd, 0) {
        if answer.try_next(&mut text).is_err() {
            break;
        }
    }
    assert!(!poll(fd, 0));
}

#[test]
fn prefill_events_that_nobody_reads_take_one_place() {
    let engine = tiny(|options| options.prefill_chunk = 10);
    let scheduler = scheduler(&engine, |options| {
        options.queue_events = 2;
        options.step_tokens = 1;
    });
    let answer = scheduler
        .submit(start(&engine, none(), &[3; 95]), &at_most(20))
        .unwrap();
    until(&scheduler, |figures| figures.paused == 1);
    let mut text = String::new();
    let prefill = Event::Prefill { done: 95, total: 95 };
    assert_eq!(answer.next(&mut text, None), Ok(Next::Event(prefill)));
    assert_eq!(read(&answer).unwrap().0.len(), 20);
}

#[test]
fn options_have_limits() {
    let engine = tiny(|_| {});
    let broken: [fn(&mut SchedulerOptions); 4] = [
        |options| options.max_rows = 0,
        |options| options.step_tokens = 0,
        |options| options.queue_events = 0,
        |options| options.max_waiting = 1 << 17,
    ];
    for change in broken {
        let mut options = SchedulerOptions::default();
        change(&mut options);
        let error = Scheduler::new(&engine, options).err().unwrap();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
}
