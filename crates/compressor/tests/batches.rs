//! One path against another: layouts, formats, batches, windows, the steps one by one, shared blocks, merges.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;

use common::*;
use reasoning_rpc_compressor::*;
use reasoning_rpc_core::{Aggregation, Budget, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

const SHAPE: (usize, usize, usize) = (6, 2, 16);
const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];

fn rpc(aggregation: Aggregation) -> RpcOptions {
    RpcOptions {
        interval: 12,
        window: 3,
        budget: Budget::Ratio(3),
        aggregation: Some(aggregation),
        ..RpcOptions::default()
    }
}

fn of(dtype: Dtype) -> Options {
    options(SHAPE.0, SHAPE.1, SHAPE.2, dtype, rpc(Aggregation::KvHead))
}

fn queries_of(random: &mut Random, sequences: usize) -> Vec<f32> {
    random_numbers(random, sequences * 3 * SHAPE.0 * SHAPE.2)
}

fn window(queries: &[f32]) -> Window<'_> {
    ring(queries, SHAPE.0, SHAPE.2, 3, None)
}

fn compress(compressor: &Compressor, host: &mut Host, window: &Window<'_>) -> (Vec<u32>, Vec<i32>) {
    let mut memory = Memory::new(compressor, &host.batch());
    let layer = host.layer(0);
    // SAFETY: the host's memory is what it says.
    let plan = unsafe { compressor.compress(&layer, &host.batch(), window, memory.workspace()) }.unwrap();
    host.adopt(&plan);
    (plan.kept.to_vec(), plan.freed_blocks.to_vec())
}

const SEQUENCES: [[i32; 3]; 4] = [[70, 9, 1], [2, 1, 0], [31, 0, 0], [55, 20, 3]];

#[test]
fn layouts_agree_and_sequences_do_not_meet() {
    let mut random = Random::new(seed());
    for dtype in DTYPES {
        let compressor = Compressor::new(&of(dtype)).unwrap();
        let mut dense = Host::new(Place::Dense, (2, 16, dtype), &SEQUENCES, &mut random);
        dense.fill(&mut random);
        let before = dense.clone();
        let queries = queries_of(&mut random, 4);
        let (kept, freed) = compress(&compressor, &mut dense, &window(&queries));
        assert!(freed.is_empty());
        assert_eq!(dense.lengths, [9 + 8 + 3, 2, 4 + 3, 20 + 16 + 3]);
        // Entries in front, and all that lies beyond the room of what moves, are as they were.
        for place in PLACES {
            let mut other = Host::new(place, (2, 16, dtype), &SEQUENCES, &mut random);
            before.copy_to(&mut other);
            let table = other.table.clone();
            let (found, freed) = compress(&compressor, &mut other, &window(&queries));
            assert_eq!(found, kept, "{dtype:?} {place:?}");
            let mut tails = vec![];
            for (sequence, [length, ..]) in SEQUENCES.iter().enumerate() {
                for kv_head in 0..2 {
                    assert_eq!(other.entries(sequence, kv_head), dense.entries(sequence, kv_head));
                }
                let blocks = |entries: i32| (entries as usize).div_ceil(other.block_entries);
                let row = &table[sequence * other.columns..];
                if place != Place::Dense {
                    tails.extend_from_slice(&row[blocks(other.lengths[sequence])..blocks(*length)]);
                }
            }
            assert_eq!(freed, tails);
        }
        let mut start = 0;
        for (sequence, numbers) in SEQUENCES.iter().enumerate() {
            let mut alone = Host::new(Place::HeadMajor, (2, 16, dtype), &[*numbers], &mut random);
            for kv_head in 0..2 {
                for entry in 0..numbers[0] as usize {
                    for part in 0..2 {
                        let (bytes, scale) = before.get(part, [sequence, kv_head, entry]);
                        alone.set(part, [0, kv_head, entry], &bytes, scale);
                    }
                }
            }
            let size = 3 * SHAPE.0 * SHAPE.2;
            let (own, _) = compress(
                &compressor,
                &mut alone,
                &window(&queries[sequence * size..][..size]),
            );
            assert_eq!(own, kept[start..start + own.len()]);
            start += own.len();
            for kv_head in 0..2 {
                assert_eq!(alone.entries(0, kv_head), dense.entries(sequence, kv_head));
            }
        }
    }
}

#[test]
fn recorded_windows_and_single_steps_give_the_same() {
    let mut random = Random::new(seed());
    let mut options = of(Dtype::F16);
    (options.recorded_layers, options.recorded_sequences) = (2, 6);
    let compressor = Compressor::new(&options).unwrap();
    let mut host = Host::new(Place::TokenMajor, (2, 16, Dtype::F16), &SEQUENCES, &mut random);
    host.fill(&mut random);
    let slots = [5, 0, 3, 1];
    let width = SHAPE.0 * SHAPE.2;
    let mut queries = vec![0.0; 4 * 3 * width];
    // Five tokens, of which the ring keeps three.
    for token in 0..5 {
        let rows = random_numbers(&mut random, 4 * width);
        // SAFETY: four slots' queries.
        unsafe {
            compressor.record(
                1,
                Some(&slots),
                4,
                rows.as_ptr().cast(),
                width as i64,
                16,
                Dtype::F32,
            )
        }
        .unwrap();
        for sequence in 0..4 {
            let place = (sequence * 3 + token % 3) * width;
            queries[place..place + width].copy_from_slice(&rows[sequence * width..][..width]);
        }
    }
    let oldest = [2; 4];
    let ring = ring(&queries, SHAPE.0, SHAPE.2, 3, Some(&oldest));
    let mut other = host.clone();
    let (kept, _) = compress(&compressor, &mut host, &ring);

    let mut layer = other.layer(1);
    let recorded = Window::Recorded { slots: Some(&slots) };
    let mut memory = Memory::new(&compressor, &other.batch());
    let workspace = memory.workspace();
    let mut scores = vec![0.0; compressor.sizes(&other.batch()).unwrap().score_count];
    // SAFETY: the host's memory is what it says.
    let plan = unsafe {
        compressor
            .score(&layer, &other.batch(), &recorded, &mut scores, workspace)
            .unwrap();
        let plan: Plan<'_> = compressor.select(1, &other.batch(), &scores, workspace).unwrap();
        // A score in between leaves the plan alone.
        compressor
            .score(&layer, &other.batch(), &recorded, &mut scores, workspace)
            .unwrap();
        compressor
            .apply(&layer, &other.batch(), &plan, workspace)
            .unwrap();
        plan
    };
    assert_eq!(plan.kept, kept);
    other.adopt(&plan);
    assert_eq!(other.data, host.data);

    compressor.forget(3).unwrap();
    layer.layer = 1;
    // SAFETY: as above.
    let error = unsafe {
        compressor.score(
            &layer,
            &Batch {
                lengths: &[40; 4],
                ..other.batch()
            },
            &recorded,
            &mut [],
            workspace,
        )
    };
    assert!(error.is_err());
    assert!(compressor.forget(6).is_err() && compressor.forget(-1).is_err());
}

#[test]
fn shared_blocks_are_copied_and_never_change() {
    let mut random = Random::new(seed());
    for dtype in [Dtype::F16, Dtype::I8] {
        let compressor = Compressor::new(&of(dtype)).unwrap();
        let mut host = Host::new(
            Place::TokenMajor,
            (2, 16, dtype),
            &[[60, 11, 0], [60, 11, 0]],
            &mut random,
        );
        host.fill(&mut random);
        // The second sequence is a fork of the first: all its blocks are the same.
        let (columns, used) = (host.columns, 60usize.div_ceil(host.block_entries));
        host.table.copy_within(..columns, columns);
        let queries = queries_of(&mut random, 2);
        let mut memory = Memory::new(&compressor, &host.batch());
        let layer = host.layer(0);
        // SAFETY: the host's memory is what it says.
        let error =
            unsafe { compressor.compress(&layer, &host.batch(), &window(&queries), memory.workspace()) }
                .unwrap_err();
        assert!(error.to_string().contains("once in the batch"), "{error}");

        host.shared = host.table[..used].to_vec();
        let before = host.clone();
        let new_length = 11 + 4 + 3usize;
        let copied = new_length.div_ceil(host.block_entries) - 11 / host.block_entries;
        host.spare.truncate(2 * copied - 1);
        let layer = host.layer(0);
        // SAFETY: as above.
        let error =
            unsafe { compressor.compress(&layer, &host.batch(), &window(&queries), memory.workspace()) };
        let expected = Error::TooSmall {
            what: "spare blocks",
            needed: 2 * copied,
            found: 2 * copied - 1,
        };
        assert_eq!(error.unwrap_err(), expected);
        assert_eq!((&host.data, &host.scales), (&before.data, &before.scales));

        host.spare = before.spare.clone();
        let mut plain = Host::new(
            Place::Dense,
            (2, 16, dtype),
            &[[60, 11, 0], [60, 11, 0]],
            &mut random,
        );
        host.copy_to(&mut plain);
        compress(&compressor, &mut plain, &window(&queries));
        let mut memory = Memory::new(&compressor, &host.batch());
        let layer = host.layer(0);
        // SAFETY: as above.
        let plan =
            unsafe { compressor.compress(&layer, &host.batch(), &window(&queries), memory.workspace()) }
                .unwrap();
        let first = 11 / host.block_entries;
        let expected: Vec<BlockCopy> = (0..2 * copied)
            .map(|k| BlockCopy {
                sequence: (k / copied) as u32,
                index: (first + k % copied) as u32,
                from: before.table[first + k % copied],
                to: before.spare[k],
            })
            .collect();
        assert_eq!(plan.copies, expected);
        assert_eq!(
            plan.freed_blocks,
            [&before.table[first..used], &before.table[first..used]].concat()
        );
        for &block in &before.shared {
            assert_eq!(host.block(block), before.block(block));
        }
        host.adopt(&plan);
        for sequence in 0..2 {
            for kv_head in 0..2 {
                assert_eq!(host.entries(sequence, kv_head), plain.entries(sequence, kv_head));
            }
        }
    }
}

/// Keeps every third candidate and merges the next one into it, in all KV heads.
struct Thirds;

impl Select for Thirds {
    fn select(&self, request: &mut Request<'_>) -> std::result::Result<(), String> {
        assert_eq!(
            request.scores.len(),
            (request.kv_heads * request.candidates) as usize
        );
        let kept: Vec<u32> = (0..request.candidates).step_by(3).collect();
        request.kept[..kept.len()].copy_from_slice(&kept);
        request.kept_count = kept.len() as u32;
        for kv_head in 0..request.kv_heads {
            for &into in kept.iter().filter(|&&into| into + 2 < request.candidates) {
                for (from, weight) in [(into + 1, 0.25), (into + 2, -0.125)] {
                    request.merges[request.merge_count as usize] = Merge {
                        sequence: request.sequence,
                        kv_head,
                        from,
                        into,
                        key_weight: weight,
                        value_weight: 2.0 * weight,
                    };
                    request.merge_count += 1;
                }
            }
        }
        Ok(())
    }
}

#[test]
fn merges_are_what_a_plain_loop_gives() {
    let mut random = Random::new(seed());
    for dtype in DTYPES {
        let mut options = of(dtype);
        options.selection = Selection::Callback(Arc::new(Thirds));
        options.max_merges = 200;
        let compressor = Compressor::new(&options).unwrap();
        let mut host = Host::new(Place::HeadMajor, (2, 16, dtype), &SEQUENCES, &mut random);
        host.fill(&mut random);
        let before = host.clone();
        let queries = queries_of(&mut random, 4);
        compress(&compressor, &mut host, &window(&queries));
        for (sequence, [length, prompt, _]) in SEQUENCES.iter().enumerate() {
            let candidates = (length - prompt - 3).max(0) as usize;
            for kept in 0..candidates.div_ceil(3) {
                for (kv_head, part) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let read = |offset: usize| {
                        let entry = *prompt as usize + 3 * kept + offset;
                        numbers(dtype, &before.get(part, [sequence, kv_head, entry]))
                    };
                    let found = host.get(part, [sequence, kv_head, *prompt as usize + kept]);
                    let found = numbers(dtype, &found);
                    let merged = 3 * kept + 2 < candidates;
                    let mut most = 0.0f64;
                    let expected: Vec<f64> = (0..16)
                        .map(|d| {
                            let w = if part == 0 { 1.0 } else { 2.0 };
                            let at = |offset: usize| f64::from(read(offset)[d]);
                            let x = if merged {
                                (1.0 - w * 0.125) * at(0) + w * 0.25 * at(1) - w * 0.125 * at(2)
                            } else {
                                at(0)
                            };
                            most = most.max(x.abs());
                            x
                        })
                        .collect();
                    // Half a unit in the last place of the format (of the largest number, for int8), and float32's rounding.
                    let unit = match dtype {
                        Dtype::F32 => 0.0,
                        Dtype::F16 => 2f64.powi(-11),
                        Dtype::Bf16 => 2f64.powi(-8),
                        Dtype::I8 => 0.5 / 127.0,
                    };
                    for (found, expected) in found.iter().zip(expected) {
                        let scale = if dtype == Dtype::I8 { most } else { expected.abs() };
                        let allowed = if merged { unit * scale + 1e-6 } else { 0.0 };
                        assert!(
                            (f64::from(*found) - expected).abs() <= allowed,
                            "{dtype:?}: {found} for {expected}"
                        );
                    }
                }
            }
        }
    }
}
