//! Views, batches and plans that cannot be: an error that says so, and nothing written.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;

use common::*;
use reasoning_rpc_compressor::*;
use reasoning_rpc_core::{Budget, RpcOptions};
use reasoning_rpc_test_support::{Random, seed};

fn rpc() -> RpcOptions {
    RpcOptions {
        interval: 12,
        window: 3,
        budget: Budget::Ratio(3),
        ..RpcOptions::default()
    }
}

const SEQUENCES: [[i32; 3]; 2] = [[60, 11, 0], [40, 0, 1]];

fn start(place: Place) -> (Compressor, Host, Vec<f32>) {
    let mut random = Random::new(seed());
    let compressor = Compressor::new(&options(4, 2, 16, Dtype::F32, rpc())).unwrap();
    let mut host = Host::new(place, (2, 16, Dtype::F32), &SEQUENCES, &mut random);
    host.fill(&mut random);
    (compressor, host, random_numbers(&mut random, 2 * 3 * 4 * 16))
}

/// Tries a compression of a batch and layer that `change` spoiled.
fn refused(place: Place, text: &str, change: impl Fn(&mut Layer, &mut Batch<'_>)) {
    let (compressor, mut host, queries) = start(place);
    let mut memory = Memory::new(&compressor, &host.batch());
    let before = host.data.clone();
    let mut layer = host.layer(0);
    let mut batch = host.batch();
    change(&mut layer, &mut batch);
    let window = ring(&queries, 4, 16, 3, None);
    // SAFETY: what was changed is refused before it is followed.
    let error = unsafe { compressor.compress(&layer, &batch, &window, memory.workspace()) };
    let error = error.map(|_| ()).expect_err(text).to_string();
    assert!(error.contains(text), "expected {text:?}, found {error:?}");
    assert_eq!(host.data, before);
}

#[test]
fn batches_that_cannot_be() {
    for place in PLACES {
        refused(place, "prompt_lengths", |_, batch| batch.prompt_lengths = &[1]);
        refused(place, "length of sequence 1", |_, batch| {
            batch.lengths = &[60, -1]
        });
        refused(place, "length of sequence 0", |_, batch| {
            batch.lengths = &[i32::MAX, 40]
        });
        refused(place, "prompt_length of sequence 0", |_, batch| {
            batch.prompt_lengths = &[61, 0]
        });
        refused(place, "compressions of sequence 0", |_, batch| {
            batch.compressions = &[-1, 0]
        });
        refused(place, "row of sequence 1", |_, batch| batch.rows = Some(&[0, 2]));
        refused(place, "block_entries", |_, batch| batch.block_entries = 0);
        refused(place, "keys: stride", |layer, _| layer.keys.strides[1] = 15);
        refused(place, "values: stride", |layer, _| layer.values.strides[1] = -16);
        refused(place, "keys: stride", |layer, _| layer.keys.strides[0] = i64::MAX);
        refused(place, "keys: stride", |layer, _| layer.keys.strides[0] = 0);
        refused(place, "keys and values", |layer, _| layer.values = layer.keys);
        refused(place, "keys", |layer, _| layer.keys.data = std::ptr::null_mut());
        refused(place, "multiple of 4", |layer, _| {
            layer.keys.data = layer.keys.data.wrapping_byte_add(2)
        });
        refused(place, "scales", |layer, _| layer.scales = Some([layer.keys; 2]));
    }
    refused(Place::Dense, "once in the batch", |_, batch| {
        batch.rows = Some(&[1, 1]);
        batch.lengths = &[40, 40];
    });
    refused(Place::Dense, "shared_blocks", |_, batch| {
        batch.shared_blocks = &[0]
    });
    for ids in [[-1; 300], [i32::MAX; 300]] {
        let ids: &'static [i32] = Vec::leak(ids.to_vec());
        refused(Place::HeadMajor, "block 0 of sequence 0", |_, batch| {
            batch.block_table = Some(BlockTable {
                ids: ids.as_ptr(),
                stride: 100,
            });
        });
        refused(Place::HeadMajor, "shared_blocks[0]", |_, batch| {
            batch.shared_blocks = ids
        });
        refused(Place::HeadMajor, "spare_blocks[0]", |_, batch| {
            batch.spare_blocks = ids
        });
    }
    refused(Place::HeadMajor, "a sequence uses", |_, batch| {
        // SAFETY: the table has ids.
        let id = unsafe { *batch.block_table.unwrap().ids };
        batch.spare_blocks = Vec::leak(vec![id]);
    });
    refused(Place::HeadMajor, "named twice", |_, batch| {
        batch.spare_blocks = Vec::leak(vec![batch.spare_blocks[0]; 2]);
    });
    refused(Place::HeadMajor, "once in the batch", |_, batch| {
        batch.rows = Some(&[0, 0])
    });
    refused(Place::HeadMajor, "block_table_stride", |_, batch| {
        batch.block_table.as_mut().unwrap().stride = -1
    });
    refused(Place::HeadMajor, "length of sequence 0", |_, batch| {
        batch.block_table.as_mut().unwrap().stride = 1
    });
}

#[test]
fn plans_that_cannot_be() {
    for place in PLACES {
        let (compressor, mut host, queries) = start(place);
        if place != Place::Dense {
            host.shared = vec![host.table[11 / host.block_entries]];
        }
        let mut memory = Memory::new(&compressor, &host.batch());
        let workspace = memory.workspace();
        let layer = host.layer(0);
        let batch = host.batch();
        let mut scores = vec![0.0; compressor.sizes(&batch).unwrap().score_count];
        let window = ring(&queries, 4, 16, 3, None);
        // SAFETY: the host's memory is what it says, here and below.
        let plan: Plan<'_> = unsafe {
            compressor
                .score(&layer, &batch, &window, &mut scores, workspace)
                .unwrap();
            compressor.select(0, &batch, &scores, workspace).unwrap()
        };
        let changed = |index: usize, value: u32| {
            let mut kept = plan.kept.to_vec();
            kept[index] = value;
            kept
        };
        let last = plan.kept_counts[0] as usize - 1;
        let (range, twice) = (changed(last, 46), changed(1, plan.kept[0]));
        let more = [plan.freed_blocks, &[0]].concat();
        let copy = BlockCopy::default();
        let copies = [plan.copies, &[copy]].concat();
        let merge = Merge {
            into: plan.kept[0],
            ..Merge::default()
        };
        let bad = [
            ("kept set of sequence 0", Plan { kept: &range, ..plan }),
            ("strictly ascending", Plan { kept: &twice, ..plan }),
            (
                "plan: kept",
                Plan {
                    kept: &plan.kept[1..],
                    ..plan
                },
            ),
            (
                "kept_counts[0]",
                Plan {
                    kept_counts: &[47, 0],
                    ..plan
                },
            ),
            (
                "kept_counts",
                Plan {
                    kept_counts: &[4],
                    ..plan
                },
            ),
            (
                "new_lengths[0]",
                Plan {
                    new_lengths: &[19, 11],
                    ..plan
                },
            ),
            (
                "new_lengths[1]",
                Plan {
                    new_lengths: &[18, -11],
                    ..plan
                },
            ),
            ("sets", Plan { sets: 3, ..plan }),
            (
                "freed_blocks",
                Plan {
                    freed_blocks: &more,
                    ..plan
                },
            ),
            (
                "copies",
                Plan {
                    copies: &copies,
                    ..plan
                },
            ),
            (
                "merges of sequence 0",
                Plan {
                    merges: &[merge],
                    ..plan
                },
            ),
            (
                "merges",
                Plan {
                    merges: &[Merge { sequence: 7, ..merge }],
                    ..plan
                },
            ),
        ];
        let before = host.data.clone();
        for (text, plan) in bad {
            // SAFETY: as above.
            let error = unsafe { compressor.apply(&layer, &host.batch(), &plan, workspace) };
            let error = error.expect_err(text).to_string();
            assert!(
                error.contains(text),
                "{place:?}: expected {text:?}, found {error:?}"
            );
            assert_eq!(host.data, before);
        }
        scores[5] = f32::NAN;
        // SAFETY: as above.
        let error = unsafe { compressor.select(0, &host.batch(), &scores, workspace) }.unwrap_err();
        assert!(error.to_string().contains("NaN at 5"), "{error}");
        let small = Workspace::new(Box::leak(Box::new([0u64; 4])).as_mut_ptr().cast(), 32).unwrap();
        // SAFETY: as above.
        let error = unsafe { compressor.apply(&layer, &host.batch(), &plan, small) }.unwrap_err();
        assert!(matches!(error, Error::TooSmall { found: 32, .. }), "{error}");
    }
}

/// Answers with random numbers.
struct Anything(u64);

impl Select for Anything {
    fn select(&self, request: &mut Request<'_>) -> std::result::Result<(), String> {
        let mut random = Random::new(self.0 + u64::from(request.sequence));
        request.sets = random.below(4) as u32;
        request.kept_count = random.below(request.candidates as usize + 2) as u32;
        request.merge_count = random.below(3) as u32;
        for slot in request.kept.iter_mut() {
            *slot = random.below(request.candidates as usize + 1) as u32;
        }
        if random.below(2) == 0 {
            request.kept.sort_unstable();
        }
        if random.below(9) == 0 {
            return Err("callback returned 7".into());
        }
        Ok(())
    }
}

/// Whatever a batch and a callback say: an error, and nothing was written, or a plan that holds.
#[test]
fn random_batches_and_answers() {
    let mut random = Random::new(seed());
    let odd = [-1, 0, 1, 2, 3, 7, 40, 60, 61, 1000, i32::MAX, i32::MIN];
    let mut passed = 0;
    for round in 0..3000 {
        let place = PLACES[random.below(3)];
        let mut options = options(4, 2, 16, Dtype::F32, rpc());
        if random.below(2) == 0 {
            options.selection = Selection::Callback(Arc::new(Anything(round)));
            options.max_merges = 2;
        }
        let compressor = Compressor::new(&options).unwrap();
        let mut host = Host::new(place, (2, 16, Dtype::F32), &SEQUENCES, &mut random);
        host.fill(&mut random);
        let queries = random_numbers(&mut random, 2 * 3 * 4 * 16);
        let mut memory = Memory::new(&compressor, &host.batch());
        let layer = host.layer(0);
        for _ in 0..random.below(3) {
            let value = odd[random.below(odd.len())];
            let index = random.below(2);
            match random.below(6) {
                0 => host.prompts[index] = value,
                1 => host.done[index] = value,
                // No longer than the table's rows are.
                2 => host.lengths[index] = value.min(60),
                3 => host.table[index] = value,
                4 => host.shared.push(value),
                _ => host.spare.push(value),
            }
        }
        let before = host.data.clone();
        let window = ring(&queries, 4, 16, 3, None);
        // SAFETY: the tensors are what the host says, and ids are readable for up to 60 entries.
        let plan = unsafe { compressor.compress(&layer, &host.batch(), &window, memory.workspace()) };
        match plan {
            Err(_) => assert_eq!(host.data, before),
            Ok(plan) => {
                passed += 1;
                for (found, length) in plan.new_lengths.iter().zip(&host.lengths) {
                    assert!(found <= length && *found >= 0);
                }
            }
        }
    }
    assert!(passed > 100, "{passed}");
}

#[test]
fn options_that_cannot_be() {
    let good = options(4, 2, 16, Dtype::F16, rpc());
    for (text, options) in [
        (
            "heads",
            Options {
                heads: 5,
                ..good.clone()
            },
        ),
        (
            "kv_heads",
            Options {
                kv_heads: 0,
                ..good.clone()
            },
        ),
        (
            "head_dim",
            Options {
                head_dim: 12,
                ..good.clone()
            },
        ),
        (
            "scale",
            Options {
                scale: Some(f32::NAN),
                ..good.clone()
            },
        ),
        (
            "scale",
            Options {
                scale: Some(-1.0),
                ..good.clone()
            },
        ),
        (
            "recorded",
            Options {
                recorded_layers: usize::MAX,
                recorded_sequences: 2,
                ..good.clone()
            },
        ),
        (
            "window",
            Options {
                rpc: RpcOptions { window: 12, ..rpc() },
                ..good.clone()
            },
        ),
    ] {
        let error = Compressor::new(&options).map(|_| ()).expect_err(text).to_string();
        assert!(error.contains(text), "expected {text:?}, found {error:?}");
    }
    let compressor = Compressor::new(&good).unwrap();
    assert!(
        !compressor.due(14, 0)
            && compressor.due(15, 0)
            && !compressor.due(26, 1)
            && !compressor.due(u64::MAX - 1, u64::MAX)
    );
    let none = Compressor::new(&Options {
        selection: Selection::None,
        ..good
    })
    .unwrap();
    assert!(!none.due(1000, 0));
}
