//! Forks: they go on as the original would, nobody writes what another holds, promises are kept.

use std::sync::Arc;

use reasoning_rpc_core::{Aggregation, Policy};
use reasoning_rpc_test_support::{Random, model, seed};

use super::{contents, logits, none, outcome, prompt, prompt_up_to, rpc, run_pending, start, tiny, write};
use crate::error::Error;
use crate::sampling::SamplingOptions;
use crate::{CacheType, Engine, Sequence, SequenceOptions};

fn begin(engine: &Engine, policy: &Arc<dyn Policy>, sampling: SamplingOptions, text: &[u32]) -> Sequence {
    let mut sequence = engine
        .sequence(SequenceOptions {
            policy: Arc::clone(policy),
            sampling,
            record_kept: true,
        })
        .unwrap();
    sequence.append_tokens(text).unwrap();
    sequence
}

fn promised(sequence: &Sequence) -> usize {
    sequence.cache.as_ref().unwrap().promised()
}

fn engine_of(name: &str, cache: CacheType, entries: usize) -> Engine {
    tiny(|options| {
        options.model = model(name);
        options.cache_type = Some(cache);
        options.block_entries = entries;
        options.prefill_chunk = 37;
    })
}

/// A fork at any moment (the middle of a window, of a block, of the prompt), and a fork of the fork: all
/// write what one that was never forked writes, and nobody sees the others at work.
fn forks_go_on_as_the_original(engine: &Engine, aggregation: Aggregation, random: &mut Random) {
    let policy = match random.below(8) {
        0 => none(),
        _ => rpc(32, 8, 4, aggregation),
    };
    let sampling = SamplingOptions {
        temperature: [0.0, 0.9][random.below(2)],
        repetition_penalty: [1.0, 1.2][random.below(2)],
        seed: random.bits(),
        ..SamplingOptions::GREEDY
    };
    let text = prompt_up_to(random, 90);
    let turn = prompt_up_to(random, 20);
    let second_turn_at = 45 + random.below(60);
    let end = 170;
    let go = |sequence: &mut Sequence, until: usize| {
        for _ in sequence.stats().decode_tokens..until {
            write(engine, sequence, 1);
            run_pending(engine, sequence);
            if sequence.stats().decode_tokens == second_turn_at {
                sequence.append_tokens(&turn).unwrap();
            }
        }
    };
    let mut expected = begin(engine, &policy, sampling, &text);
    go(&mut expected, end);
    run_pending(engine, &mut expected);

    // Inside of a window before its compression, or anywhere.
    let forked_at = match random.below(2) {
        0 => 32 * (1 + random.below(4)) + random.below(8),
        _ => random.below(150),
    };
    let again_at = forked_at + random.below(end - forked_at);
    let mut parent = begin(engine, &policy, sampling, &text);
    // Perhaps in the middle of the prompt.
    engine.step(&mut [&mut parent]).unwrap();
    go(&mut parent, forked_at);
    let mut child = parent.fork().unwrap();
    assert_eq!(contents(&child), contents(&parent));
    assert_eq!(outcome(&child), outcome(&parent));
    let before = contents(&parent);
    go(&mut child, again_at);
    let mut grandchild = child.fork().unwrap();
    go(&mut child, end);
    run_pending(engine, &mut child);
    assert_eq!(contents(&parent), before, "the parent's cache is its own");
    let finished = contents(&child);
    if random.below(2) == 0 {
        // The last one alone with its blocks writes in place.
        drop(std::mem::replace(&mut child, parent.fork().unwrap()));
        go(&mut parent, end);
        assert_eq!(contents(&child), before);
    } else {
        go(&mut parent, end);
        assert_eq!(contents(&child), finished);
    }
    drop(child);
    go(&mut grandchild, end);
    for mut sequence in [parent, grandchild] {
        run_pending(engine, &mut sequence);
        assert_eq!(
            outcome(&sequence),
            outcome(&expected),
            "forked at {forked_at}, {again_at}"
        );
        assert_eq!(contents(&sequence), finished);
        assert_eq!(logits(&sequence), logits(&expected));
    }
    assert_eq!(contents(&expected), finished);
    let compressions = expected.compressions().len() / 3;
    assert_eq!(compressions, if policy.name() == "none" { 0 } else { 5 });
    drop(expected);
    assert_eq!(engine.budget().1, 0, "all blocks came back");
}

#[test]
fn forks_write_what_the_original_writes() {
    let mut random = Random::new(seed());
    for aggregation in [Aggregation::Layer, Aggregation::KvHead] {
        for entries in [16, 64] {
            for (name, cache) in [
                ("golden/qwen2_p32-cached", CacheType::F32),
                ("golden/llama_p48_c8-cached", CacheType::F16),
                ("golden/llama_p48_c8-cached", CacheType::Bf16),
                ("golden/qwen2_p32-cached", CacheType::I8),
                ("golden/qwen2_p32-portable", CacheType::F32),
            ] {
                let engine = engine_of(name, cache, entries);
                for _ in 0..4 {
                    forks_go_on_as_the_original(&engine, aggregation, &mut random);
                }
            }
        }
    }
}

/// Two forks of one text go different ways in turns, from the middle of a shared block through several
/// compressions: each as it would alone.
#[test]
fn forks_that_part_do_not_see_each_other() {
    let mut random = Random::new(seed());
    for aggregation in [Aggregation::Layer, Aggregation::KvHead] {
        for (name, entries) in [
            ("qwen2_p32-cached", 16),
            ("qwen2_p32-cached", 64),
            ("qwen2_p32-portable", 16),
        ] {
            let engine = engine_of(&format!("golden/{name}"), CacheType::F32, entries);
            let text = prompt_up_to(&mut random, 50);
            let common = prompt_up_to(&mut random, 60);
            let ways: Vec<Vec<u32>> = (0..3).map(|_| prompt(&mut random, 90)).collect();
            let accept = |sequence: &mut Sequence, tokens: &[u32]| {
                for &token in tokens {
                    sequence.accept(token).unwrap();
                    run_pending(&engine, sequence);
                }
            };
            let begin = || {
                let mut sequence = start(&engine, rpc(32, 8, 4, aggregation), &text);
                accept(&mut sequence, &common);
                sequence
            };
            let mut forks = vec![begin()];
            for _ in 1..ways.len() {
                forks.push(forks[0].fork().unwrap());
            }
            let mut done = 0;
            while done < 90 {
                let until = (done + 1 + random.below(6)).min(90);
                for (fork, way) in forks.iter_mut().zip(&ways) {
                    accept(fork, &way[done..until]);
                }
                done = until;
            }
            for (fork, way) in forks.iter().zip(&ways) {
                let mut alone = begin();
                accept(&mut alone, way);
                assert_eq!(outcome(fork), outcome(&alone));
                assert_eq!(contents(fork), contents(&alone));
                assert_eq!(logits(fork), logits(&alone));
            }
        }
    }
}

#[test]
fn a_fork_counts_once_until_it_writes() {
    let engine = tiny(|_| {});
    let block = engine.cache_shape().block_bytes();
    let mut parent = start(&engine, none(), &[5; 40]);
    run_pending(&engine, &mut parent);
    // 2 full blocks and an open one in each of 6 KV heads.
    assert_eq!(engine.budget().1, 18 * block);
    let mut forks: Vec<Sequence> = (0..5).map(|_| parent.fork().unwrap()).collect();
    assert_eq!(engine.budget().1, 18 * block);
    assert_eq!(promised(&parent), 5 * 6 * block, "open blocks alone");
    for (done, fork) in (1..).zip(&mut forks) {
        fork.accept(7).unwrap();
        run_pending(&engine, fork);
        assert_eq!(engine.budget().1, (18 + 6 * done) * block);
        assert_eq!(promised(&parent), (5 - done) * 6 * block);
        assert_eq!(fork.stats().cache_bytes, 18 * block);
    }
    // The parent is alone with the old ones.
    parent.accept(7).unwrap();
    run_pending(&engine, &mut parent);
    assert_eq!(engine.budget().1, (18 + 30) * block);
    assert!(forks.iter().all(|fork| contents(fork) == contents(&parent)));
}

/// 24 blocks are held and 18 may have to be copied: 6 are full of the prompt.
#[test]
fn a_fork_that_cannot_be_promised_is_refused_and_one_that_can_is_enough() {
    let bytes = |blocks: usize| blocks * 16 * (2 * 16 * 4 + 4);
    for (blocks, fits) in [(41, false), (42, true)] {
        let engine = tiny(|options| options.budget = Some(bytes(blocks)));
        let policy = rpc(32, 8, 4, Aggregation::KvHead);
        let mut expected = Vec::new();
        for forked in [false, true] {
            let mut parent = start(&engine, Arc::clone(&policy), &[9; 20]);
            write(&engine, &mut parent, 36);
            assert_eq!(engine.budget().1, bytes(24));
            if !forked {
                write(&engine, &mut parent, 10);
                expected = parent.tokens().to_vec();
                continue;
            }
            let before = (contents(&parent), promised(&parent));
            match parent.fork() {
                Err(error) => {
                    assert!(!fits);
                    assert_eq!(
                        error,
                        Error::Budget {
                            needed: bytes(18),
                            queries: 0,
                            available: bytes(17)
                        }
                    );
                    assert_eq!((contents(&parent), promised(&parent)), before);
                    write(&engine, &mut parent, 10);
                }
                Ok(mut child) => {
                    assert!(fits);
                    assert_eq!(promised(&parent), bytes(18));
                    let mut stranger = start(&engine, none(), &[1]);
                    assert!(matches!(
                        engine.step(&mut [&mut stranger]),
                        Err(Error::Budget { available: 0, .. })
                    ));
                    // Both compress; nobody else's promise is touched.
                    write(&engine, &mut child, 10);
                    assert_eq!(contents(&parent), before.0);
                    write(&engine, &mut parent, 10);
                    assert_eq!(child.tokens(), expected);
                    assert_eq!(child.stats().compressions, 1);
                }
            }
            assert_eq!(parent.tokens(), expected);
        }
        assert_eq!(engine.budget().1, 0);
    }
}

#[test]
fn three_levels_of_forks_may_be_freed_in_any_order() {
    let mut random = Random::new(seed());
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let engine = tiny(|_| {});
        let policy = rpc(32, 8, 4, Aggregation::KvHead);
        let text = prompt_up_to(&mut random, 50);
        let mut family = vec![start(&engine, policy, &text)];
        write(&engine, &mut family[0], 20);
        for _ in 0..2 {
            let mut fork = family.last().unwrap().fork().unwrap();
            write(&engine, &mut fork, 17);
            family.push(fork);
        }
        let mut family: Vec<Option<Sequence>> = family.into_iter().map(Some).collect();
        for freed in order {
            family[freed] = None;
            for sequence in family.iter_mut().flatten() {
                write(&engine, sequence, 25);
            }
            let texts: Vec<&[u32]> = family.iter().flatten().map(Sequence::tokens).collect();
            for pair in texts.windows(2) {
                let len = pair[0].len().min(pair[1].len());
                assert_eq!(pair[0][..len], pair[1][..len]);
            }
        }
        let probe = start(&engine, none(), &[1]);
        assert_eq!((engine.budget().1, promised(&probe)), (0, 0));
    }
}

#[test]
fn forks_of_one_sequence_may_be_made_at_the_same_time() {
    let engine = tiny(|_| {});
    let mut parent = start(&engine, rpc(32, 8, 4, Aggregation::Layer), &[3; 25]);
    write(&engine, &mut parent, 30);
    let (parent, shared) = (&parent, &engine);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                for _ in 0..20 {
                    let mut fork = parent.fork().unwrap();
                    write(shared, &mut fork, 4);
                }
            });
        }
    });
    let mut forks: Vec<Sequence> = (0..3).map(|_| parent.fork().unwrap()).collect();
    for fork in &mut forks {
        write(&engine, fork, 40);
    }
    assert_eq!(outcome(&forks[0]), outcome(&forks[2]));
}

/// Random families in a small pool: what was promised is given, whoever forks, writes, rewinds and goes.
#[test]
fn no_promise_is_broken_whatever_the_others_do() {
    let mut random = Random::new(seed());
    let (mut forks, mut refused, mut rewound, mut compressions) = (0, 0, 0, 0);
    for round in 0..24 {
        let block = 16 * (2 * 16 * 4 + 4);
        let blocks = 6 * (12 + random.below(24));
        let engine = tiny(|options| options.budget = Some(blocks * block));
        let policy = match round % 3 {
            0 => none(),
            1 => rpc(32, 8, 4, Aggregation::Layer),
            _ => rpc(24, 4, 2, Aggregation::KvHead),
        };
        // With each: tokens that it was promised.
        let mut family: Vec<(Sequence, usize)> = Vec::new();
        // The text is the same for all: greedy, one prompt.
        let text = prompt_up_to(&mut random, 40);
        let mut longest: Vec<u32> = Vec::new();
        for _ in 0..60 {
            if family.is_empty() {
                family.push((start(&engine, Arc::clone(&policy), &text), 0));
            }
            let index = random.below(family.len());
            let few = family.len() < 6;
            let (sequence, promise) = &mut family[index];
            match random.below(8) {
                0 | 1 if few => match sequence.fork() {
                    Ok(fork) => {
                        family.push((fork, 0));
                        forks += 1;
                    }
                    Err(error) => {
                        assert!(matches!(error, Error::Budget { .. }), "{error}");
                        refused += 1;
                    }
                },
                2 => {
                    let tokens = 1 + random.below(60);
                    match sequence.reserve(tokens) {
                        Ok(()) => *promise = tokens,
                        Err(error) => {
                            assert!(matches!(error, Error::Budget { .. }), "{error}");
                            refused += 1;
                        }
                    }
                }
                3 => {
                    let len = sequence.tokens().len();
                    let tokens = 1 + random.below(len);
                    match sequence.rewind(tokens) {
                        Ok(()) => {
                            *promise = 0;
                            rewound += 1;
                            // What was cut off of the prompt is given again.
                            if tokens < text.len() {
                                sequence.append_tokens(&text[tokens..]).unwrap();
                            }
                        }
                        Err(error) => assert!(matches!(error, Error::InvalidArgument(_)), "{error}"),
                    }
                }
                4 => {
                    family.swap_remove(index);
                }
                _ => {
                    for _ in 0..1 + random.below(20) {
                        let mut ran = Ok(());
                        while sequence.pending() > 0 && ran.is_ok() {
                            ran = engine.step(&mut [&mut *sequence]);
                        }
                        if let Err(error) = ran {
                            assert!(matches!(error, Error::Budget { .. }), "{error}");
                            assert_eq!(*promise, 0, "a promise was broken");
                            refused += 1;
                            break;
                        }
                        sequence.sample().unwrap();
                        *promise = promise.saturating_sub(1);
                    }
                    let tokens = sequence.tokens();
                    let common = tokens.len().min(longest.len());
                    assert_eq!(tokens[..common], longest[..common]);
                    if tokens.len() > longest.len() {
                        longest = tokens.to_vec();
                    }
                    compressions = compressions.max(sequence.stats().compressions);
                }
            }
            assert!(engine.budget().1 + family.first().map_or(0, |one| promised(&one.0)) <= blocks * block);
        }
        drop(family);
        assert_eq!(engine.budget().1, 0);
    }
    eprintln!("{forks} forks, {rewound} rewinds, {refused} refusals, up to {compressions} compressions");
    assert!(forks > 50 && refused > 10 && rewound > 20 && compressions > 1);
}
