//! Rewinds: what follows is what followed.

use std::sync::Arc;

use reasoning_rpc_core::Aggregation;
use reasoning_rpc_test_support::{Random, model, seed};

use super::{contents, logits, none, outcome, prompt, prompt_up_to, rpc, run_pending, start, tiny, write};
use crate::error::Error;
use crate::sampling::SamplingOptions;
use crate::{CacheType, Sequence, SequenceOptions};

/// Random rewinds of a text of two turns, with every kind of sampling: tokens, kept sets, cache and
/// logits are those of a run that was never rewound.
#[test]
fn what_follows_a_rewind_is_what_followed() {
    let mut random = Random::new(seed());
    let (mut rewound, mut refused, mut in_window) = (0, 0, 0);
    for round in 0..25 {
        let (name, cache) = [
            ("golden/qwen2_p32-cached", CacheType::F32),
            ("golden/llama_p48_c8-cached", CacheType::F16),
            ("golden/qwen2_p32-portable", CacheType::F32),
            ("golden/llama_p48_c8-cached", CacheType::Bf16),
            ("golden/qwen2_p32-cached", CacheType::I8),
        ][round % 5];
        let engine = tiny(|options| {
            options.model = model(name);
            options.cache_type = Some(cache);
            options.block_entries = [16, 64][round % 2];
            // The stock operators' sums depend on where a chunk began: a rewind into given text would
            // change their last bits.
            options.prefill_chunk = match name.ends_with("portable") {
                true => 1,
                false => 1 + random.below(40),
            };
        });
        let policy = match round % 4 {
            0 => rpc(32, 8, 4, Aggregation::Layer),
            1 => none(),
            2 => rpc(24, 23, 2, Aggregation::KvHead),
            _ => rpc(48, 12, 8, Aggregation::KvHead),
        };
        let options = SequenceOptions {
            policy: Arc::clone(&policy),
            sampling: SamplingOptions {
                temperature: [0.0, 1.1, 0.7][random.below(3)],
                repetition_penalty: [1.0, 1.3][random.below(2)],
                top_p: [1.0, 0.9][random.below(2)],
                seed: random.bits(),
                ..SamplingOptions::GREEDY
            },
            record_kept: true,
        };
        let text = prompt_up_to(&mut random, 60);
        let turn = prompt_up_to(&mut random, 30);
        let turn_at = text.len() + 30 + random.below(60);
        let reseed_at = turn_at + turn.len() + random.below(40);
        // Token 17 of the answer, and every 31st, is the caller's choice.
        let go = |sequence: &mut Sequence, until: usize| {
            while sequence.tokens().len() < until {
                let len = sequence.tokens().len();
                if len < text.len() {
                    sequence.append_tokens(&text[len..]).unwrap();
                } else if len >= turn_at && len < turn_at + turn.len() {
                    sequence.append_tokens(&turn[len - turn_at..]).unwrap();
                } else {
                    run_pending(&engine, sequence);
                    if len == reseed_at {
                        sequence.set_seed(99).unwrap();
                    }
                    match len % 31 == 17 {
                        true => sequence.accept(len as u32 % 96).unwrap(),
                        false => {
                            sequence.sample().unwrap();
                        }
                    }
                }
            }
        };
        let end = turn_at + turn.len() + 80;
        let mut expected = engine.sequence(options.clone()).unwrap();
        go(&mut expected, end);
        run_pending(&engine, &mut expected);

        let mut sequence = engine.sequence(options).unwrap();
        for _ in 0..25 {
            go(&mut sequence, 1 + random.below(end));
            if random.below(2) == 0 {
                run_pending(&engine, &mut sequence);
            }
            // A fork shares what is rewound, and keeps it.
            let fork = (random.below(3) == 0).then(|| sequence.fork().unwrap());
            let before = fork.as_ref().map(contents);
            let len = sequence.tokens().len();
            let tokens = len.saturating_sub(random.below(30)).max(1);
            let unchanged = (outcome(&sequence), contents(&sequence));
            match sequence.rewind(tokens) {
                Ok(()) => {
                    rewound += 1;
                    assert_eq!(sequence.tokens(), &expected.tokens()[..tokens]);
                    assert!(sequence.pending() > 0 && sequence.logits().is_none());
                    let due = sequence.stats().compressions;
                    in_window += usize::from(policy.name() == "rpc" && due > 0);
                }
                Err(error) => {
                    refused += 1;
                    assert!(matches!(&error, Error::InvalidArgument(_)), "{error}");
                    assert_eq!((outcome(&sequence), contents(&sequence)), unchanged);
                }
            }
            if random.below(2) == 0 {
                go(&mut sequence, len);
                run_pending(&engine, &mut sequence);
            }
            assert_eq!(fork.as_ref().map(contents), before, "the fork's cache is its own");
        }
        go(&mut sequence, end);
        run_pending(&engine, &mut sequence);
        assert_eq!(outcome(&sequence), outcome(&expected), "round {round}");
        assert_eq!(contents(&sequence), contents(&expected), "round {round}");
        assert_eq!(logits(&sequence), logits(&expected), "round {round}");
        assert_eq!(sequence.seed(), expected.seed());
    }
    eprintln!("{rewound} rewinds, {in_window} of them after a compression, {refused} refused");
    assert!(rewound > 100 && in_window > 10 && refused > 0);
}

/// Every place of a window: the queries before the rewind are still there, those after are new.
#[test]
fn a_rewind_into_a_window_keeps_its_queries() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt(&mut random, 13);
    for aggregation in [Aggregation::Layer, Aggregation::KvHead] {
        let mut expected = start(&engine, rpc(32, 8, 4, aggregation), &text);
        write(&engine, &mut expected, 110);
        // The window of the second compression is generated tokens 64 to 71.
        for from in 64..=71 {
            for to in 41..=from {
                let mut sequence = start(&engine, rpc(32, 8, 4, aggregation), &text);
                write(&engine, &mut sequence, from);
                run_pending(&engine, &mut sequence);
                sequence.rewind(13 + to).unwrap();
                write(&engine, &mut sequence, 110 - to);
                assert_eq!(outcome(&sequence), outcome(&expected), "{from} to {to}");
            }
        }
    }
}

#[test]
fn a_rewind_goes_no_further_than_the_last_compression() {
    let engine = tiny(|_| {});
    let mut sequence = start(&engine, rpc(32, 8, 4, Aggregation::Layer), &[4; 10]);
    let error = |sequence: &mut Sequence, tokens| sequence.rewind(tokens).unwrap_err().to_string();
    assert!(error(&mut sequence, 0).contains("expected 1 to 10 tokens, found 0"));
    assert!(error(&mut sequence, 11).contains("found 11"));
    write(&engine, &mut sequence, 40);
    sequence.rewind(1).unwrap();
    assert_eq!((sequence.tokens().len(), sequence.pending()), (1, 1));
    sequence.append_tokens(&[4; 9]).unwrap();
    write(&engine, &mut sequence, 40);
    // The compression runs behind token 50.
    run_pending(&engine, &mut sequence);
    assert_eq!(sequence.stats().compressions, 1);
    let found = error(&mut sequence, 50);
    assert!(
        found.contains("expected at least 51 tokens") && found.contains("found a text of 50"),
        "{found}"
    );
    write(&engine, &mut sequence, 5);
    let found = error(&mut sequence, 50);
    assert!(
        found.contains("expected 51 to 55 tokens") && found.contains("last compression"),
        "{found}"
    );
    let before = outcome(&sequence);
    sequence.rewind(51).unwrap();
    write(&engine, &mut sequence, 4);
    assert_eq!(outcome(&sequence), before);
}

#[test]
fn a_rewind_ends_the_promise_and_frees_what_is_empty() {
    let engine = tiny(|_| {});
    let block = engine.cache_shape().block_bytes();
    let mut sequence = start(&engine, rpc(32, 8, 4, Aggregation::Layer), &[6; 20]);
    write(&engine, &mut sequence, 30);
    let promised = |sequence: &Sequence| sequence.cache.as_ref().unwrap().promised();
    // 49 entries: 4 blocks in each of 6 KV heads.
    assert_eq!((engine.budget().1, promised(&sequence)), (24 * block, 0));
    sequence.reserve(100).unwrap();
    assert!(promised(&sequence) > 0);
    sequence.rewind(33).unwrap();
    assert_eq!((engine.budget().1, promised(&sequence)), (12 * block, 0));
}

/// A promise after a rewind counts the shared block that is open again.
#[test]
fn a_promise_after_a_rewind_counts_the_copy_of_an_open_block() {
    let block = 16 * (2 * 16 * 4 + 4);
    // 2 blocks for each of 6 KV heads, and a copy of one of them.
    for (blocks, fits) in [(18, true), (17, false)] {
        let engine = tiny(|options| options.budget = Some(blocks * block));
        let mut first = start(&engine, none(), &[2; 32]);
        run_pending(&engine, &mut first);
        let mut second = first.fork().unwrap();
        let promised = |sequence: &Sequence| sequence.cache.as_ref().unwrap().promised();
        assert_eq!(promised(&first), 0, "full blocks are never written");
        let before = contents(&first);
        second.rewind(28).unwrap();
        assert_eq!(promised(&first), 0);
        // 28 entries and 4 more, the last of 5 tokens is not written.
        match second.reserve(5) {
            Ok(()) => assert!(fits),
            Err(error) => {
                let (needed, available) = (6 * block, 5 * block);
                assert_eq!(
                    (error, fits),
                    (
                        Error::Budget {
                            needed,
                            queries: 0,
                            available
                        },
                        false
                    )
                );
            }
        }
        assert_eq!(promised(&first), if fits { 6 * block } else { 0 });
        if fits {
            write(&engine, &mut second, 5);
            assert_eq!(engine.budget().1, 18 * block);
        } else {
            let error = engine.step(&mut [&mut second]).unwrap_err();
            assert!(matches!(error, Error::Budget { .. }), "{error}");
        }
        assert_eq!(contents(&first), before);
        drop(first);
        // Alone with it now.
        run_pending(&engine, &mut second);
    }
}
