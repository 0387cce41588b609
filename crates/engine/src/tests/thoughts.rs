//! Thoughts that go once their gists are written: whatever the steps, forks, rewinds and the scheduler do. What the
//! tokens and logits are is checked beside a float64 decoder in tests/abi/test_lightthinker.py.

use std::sync::Arc;
use std::time::Duration;

use reasoning_rpc_core::{LightThinker, Policy};
use reasoning_rpc_test_support::{Random, seed};
use sha2::{Digest, Sha256};

use super::{contents, logits, outcome, prompt_up_to, run_pending, start, tiny, write};
use crate::scheduler::{Next, Scheduler, SchedulerOptions};
use crate::{CacheType, Error, Event, GenerateOptions, Sequence, StopReason};

/// One token in eight ends a thought; two gists, and a token behind them or none.
struct Thoughts {
    delimiters: Vec<u32>,
    following: Vec<u32>,
    policy: Arc<dyn Policy>,
}

fn thoughts(random: &mut Random) -> Thoughts {
    let delimiters: Vec<u32> = (0..12).map(|_| 4 + random.below(92) as u32).collect();
    let resume = (random.below(2) == 0).then_some(3);
    let policy = LightThinker::new(delimiters.clone(), vec![1, 2], resume).unwrap();
    Thoughts {
        delimiters,
        following: [1, 2].into_iter().chain(resume).collect(),
        policy: Arc::new(policy),
    }
}

/// The tokens behind the first `prompt` ones that are not put there by the policy.
fn drawn(tokens: &[u32], prompt: usize, thoughts: &Thoughts) -> Vec<u32> {
    let (mut drawn, mut at) = (Vec::new(), prompt);
    while let Some(&token) = tokens.get(at) {
        drawn.push(token);
        at += 1;
        if thoughts.delimiters.contains(&token) {
            assert_eq!(&tokens[at..at + thoughts.following.len()], thoughts.following);
            at += thoughts.following.len();
        }
    }
    drawn
}

#[test]
fn a_text_that_is_known_is_read_as_it_was_written() {
    let mut random = Random::new(seed());
    for cache in [CacheType::F32, CacheType::F16, CacheType::I8] {
        let thoughts = thoughts(&mut random);
        let text = prompt_up_to(&mut random, 40);
        let engine = tiny(|options| options.cache_type = Some(cache));
        let mut sequence = start(&engine, Arc::clone(&thoughts.policy), &text);
        let written = write(&engine, &mut sequence, 120);
        run_pending(&engine, &mut sequence);
        assert!(sequence.stats().compressions > 3, "thoughts ended");
        assert_eq!(drawn(sequence.tokens(), text.len(), &thoughts), written);

        let chunk = 1 + random.below(40);
        let engine = tiny(|options| {
            options.cache_type = Some(cache);
            options.prefill_chunk = chunk;
        });
        let mut known = start(&engine, Arc::clone(&thoughts.policy), &text);
        for &token in &written {
            known.accept(token).unwrap();
        }
        run_pending(&engine, &mut known);
        assert_eq!(outcome(&known), outcome(&sequence));
        assert!(contents(&known) == contents(&sequence) && logits(&known) == logits(&sequence));
    }
}

#[test]
fn text_given_within_a_thought_stays() {
    let mut random = Random::new(seed());
    let thoughts = thoughts(&mut random);
    let engine = tiny(|_| {});
    let mut sequence = start(&engine, Arc::clone(&thoughts.policy), &[5, 6]);
    let end = thoughts.delimiters[0];
    let other = (4..96).find(|id| !thoughts.delimiters.contains(id)).unwrap();
    sequence.accept(other).unwrap();
    // A delimiter that was given ends nothing.
    sequence.append_tokens(&[end, other]).unwrap();
    sequence.accept(other).unwrap();
    sequence.accept(end).unwrap();
    sequence.accept(other).unwrap();
    run_pending(&engine, &mut sequence);
    let expected: Vec<u32> = [0, 1, 3, 4]
        .into_iter()
        .chain(7..sequence.tokens().len() as u32)
        .collect();
    for (.., positions) in contents(&sequence) {
        assert_eq!(positions, expected);
    }
}

#[test]
fn forks_and_rewinds_go_on_as_the_text_did() {
    let mut random = Random::new(seed());
    let mut rewound = 0;
    for _ in 0..10 {
        let thoughts = thoughts(&mut random);
        let text = prompt_up_to(&mut random, 40);
        let engine = tiny(|options| options.block_entries = 16);
        let mut expected = start(&engine, Arc::clone(&thoughts.policy), &text);
        write(&engine, &mut expected, 100);
        run_pending(&engine, &mut expected);
        let end = expected.tokens().len();
        let go = |sequence: &mut Sequence| {
            while sequence.tokens().len() < end {
                write(&engine, sequence, 1);
            }
            run_pending(&engine, sequence);
            assert_eq!(outcome(sequence), outcome(&expected));
            assert!(contents(sequence) == contents(&expected) && logits(sequence) == logits(&expected));
        };
        let mut sequence = start(&engine, Arc::clone(&thoughts.policy), &text);
        while sequence.tokens().len() < end {
            write(&engine, &mut sequence, 1 + random.below(12));
            if random.below(2) == 0 {
                run_pending(&engine, &mut sequence);
            }
            let mut fork = sequence.fork().unwrap();
            let len = fork.tokens().len();
            let tokens = (len - random.below(12).min(len)).max(text.len());
            if fork.rewind(tokens).is_ok() && len <= end {
                rewound += 1;
                // What followed a delimiter that stays is put back.
                assert!(fork.tokens().len() >= tokens);
                assert_eq!(fork.tokens(), &expected.tokens()[..fork.tokens().len()]);
                // In the middle of a thought or of what follows it, with text to run or without.
                let mut bytes = Vec::new();
                fork.save(&mut bytes).unwrap();
                let mut restored = engine.restore(&bytes).unwrap();
                assert!(outcome(&restored) == outcome(&fork) && contents(&restored) == contents(&fork));
                go(&mut restored);
                go(&mut fork);
            }
        }
    }
    assert!(rewound > 10, "{rewound}");
}

#[test]
fn answers_count_what_follows_and_hold_what_was_promised() {
    let mut random = Random::new(seed());
    for _ in 0..5 {
        let thoughts = thoughts(&mut random);
        let texts: Vec<_> = (0..4).map(|_| prompt_up_to(&mut random, 40)).collect();
        let engine = tiny(|_| {});
        let scheduler = Scheduler::new(&engine, SchedulerOptions::default()).unwrap();
        let limit = 40 + random.below(60);
        let options = GenerateOptions {
            max_tokens: Some(limit),
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let answers: Vec<_> = texts
            .iter()
            .map(|text| {
                let sequence = start(&engine, Arc::clone(&thoughts.policy), text);
                scheduler.submit(sequence, &options).unwrap()
            })
            .collect();
        for (text, answer) in texts.iter().zip(answers) {
            let (mut told, mut piece) = (Vec::new(), String::new());
            loop {
                match answer.next(&mut piece, Some(Duration::from_secs(60))).unwrap() {
                    Next::Event(Event::Token { id, .. }) => told.push(id),
                    Next::Event(Event::End { reason, .. }) => break assert_eq!(reason, StopReason::Length),
                    Next::Event(Event::Prefill { .. }) => {}
                    other => panic!("no event: {other:?}"),
                }
            }
            let sequence = answer.into_sequence().unwrap();
            let tokens = sequence.tokens();
            let more = tokens.len() - text.len() - limit;
            assert!(more <= thoughts.following.len(), "{more} tokens beyond the limit");
            assert_eq!(drawn(tokens, text.len(), &thoughts), told);
            let stats = sequence.stats();
            let bound = engine.cache_shape().bytes(text.len() + limit - 1);
            assert!(stats.cache_peak_bytes <= bound, "{stats:?}");

            let mut alone = start(&engine, Arc::clone(&thoughts.policy), text);
            assert_eq!(write(&engine, &mut alone, told.len()), told);
        }
    }
}

#[test]
fn the_end_of_the_context_needs_no_gists() {
    let mut random = Random::new(seed());
    let thoughts = thoughts(&mut random);
    let engine = tiny(|_| {});
    let context = engine.model().manifest().dimensions.max_positions;
    let mut sequence = start(&engine, Arc::clone(&thoughts.policy), &vec![0; context - 2]);
    sequence.accept(thoughts.delimiters[0]).unwrap();
    assert_eq!(sequence.pending(), context - 1);
    run_pending(&engine, &mut sequence);
    assert_eq!(sequence.stats().compressions, 0);
}

#[test]
fn saved_texts_that_no_thoughts_leave_are_refused() {
    let mut random = Random::new(seed());
    let thoughts = thoughts(&mut random);
    let engine = tiny(|_| {});
    let mut sequence = start(&engine, Arc::clone(&thoughts.policy), &[5, 6]);
    let other = (4..96).find(|id| !thoughts.delimiters.contains(id)).unwrap();
    for token in [other, thoughts.delimiters[0], other] {
        sequence.accept(token).unwrap();
    }
    run_pending(&engine, &mut sequence);
    let mut bytes = Vec::new();
    sequence.save(&mut bytes).unwrap();
    // Behind the header and the policy's ids.
    let header = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let ids = LightThinker::new(thoughts.delimiters.clone(), vec![1, 2], None).unwrap();
    let tokens = 16 + header + 4 * (ids.delimiters().len() + 2);
    let with = |position: usize, token: u32| {
        let mut changed = bytes.clone();
        changed[tokens + 4 * position..][..4].copy_from_slice(&token.to_le_bytes());
        let end = changed.len() - 32;
        let hash = Sha256::digest(&changed[..end]);
        changed[end..].copy_from_slice(&hash);
        engine.restore(&changed)
    };
    assert!(with(2, other).is_ok());
    for (position, token, expected) in [
        // Gists that are not there, a thought that ended earlier, one that did not end.
        (4, other, "tokens: expected gists"),
        (2, thoughts.delimiters[0], "tokens: expected gists"),
        // Other lengths follow from it.
        (3, other, ""),
    ] {
        let error = with(position, token).err().unwrap();
        assert!(
            matches!(&error, Error::State(text) if text.starts_with(expected)),
            "{error}"
        );
    }
}
