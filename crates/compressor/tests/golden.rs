//! The published method's kept sets and caches, through every layout.
#![allow(unsafe_code)]

mod common;

use common::*;
use reasoning_rpc_compressor::*;
use reasoning_rpc_core::{Aggregation, Budget, Pooling, RpcOptions, reference};
use reasoning_rpc_test_support::{Random, Tensors, golden, seed};
use serde_json::Value;

#[test]
fn kept_sets_and_caches() {
    let mut random = Random::new(seed());
    let mut cases = 0;
    for entry in std::fs::read_dir(golden("compaction")).unwrap() {
        let file = Tensors::read(&entry.unwrap().path());
        let fields: Value = serde_json::from_str(&file.metadata["case"]).unwrap();
        for place in PLACES {
            check(&file, &fields, place, &mut random);
        }
        cases += 1;
    }
    assert_eq!(cases, 11);
}

fn check(file: &Tensors, fields: &Value, place: Place, random: &mut Random) {
    let number = |name: &str| fields[name].as_u64().unwrap() as usize;
    let (heads, kv_heads, d) = (number("num_q_heads"), number("num_kv_heads"), number("head_dim"));
    let (prompt, window, batch) = (number("prompt_len"), number("R"), number("batch"));
    let (len, after, group) = (
        number("cache_len_before"),
        number("cache_len_after"),
        heads / kv_heads,
    );
    let exact = fields["dtype"] != "bfloat16";
    let dtype = if exact { Dtype::F32 } else { Dtype::Bf16 };
    let rpc = RpcOptions {
        interval: number("P"),
        window,
        budget: Budget::Ratio(number("c")),
        aggregation: Some(match fields["aggregation"].as_str().unwrap() {
            "all" => Aggregation::Layer,
            _ => Aggregation::KvHead,
        }),
        pooling: match fields["pooling"].as_str().unwrap() {
            "avgpool" => Pooling::Average,
            _ => Pooling::Max,
        },
        kernel: number("kernel_size"),
        ..RpcOptions::default()
    };
    let compressor = Compressor::new(&options(heads, kv_heads, d, dtype, rpc)).unwrap();
    let sequences = vec![[len as i32, prompt as i32, number("num_comp") as i32]; batch];
    let mut host = Host::new(place, (kv_heads, d, dtype), &sequences, random);
    let tensors = [file.get("k").f32(), file.get("v").f32()];
    for (part, tensor) in tensors.iter().enumerate() {
        for (row, numbers) in tensor.chunks(d).enumerate() {
            let bytes: Vec<u8> = numbers.iter().flat_map(|&x| bytes_of(dtype, x)).collect();
            let (sequence, kv_head) = (row / len / kv_heads, row / len % kv_heads);
            host.set(part, [sequence, kv_head, row % len], &bytes, 1.0);
        }
    }
    // The golden queries are [batch][heads][window][head_dim]; the ring begins anywhere.
    let q = file.get("q").f32();
    let places = window + random.below(3);
    let oldest: Vec<i32> = (0..batch).map(|_| random.below(places) as i32).collect();
    let mut queries = vec![f32::NAN; batch * places * heads * d];
    for (row, numbers) in q.chunks(d).enumerate() {
        let (sequence, head, token) = (row / window / heads, row / window % heads, row % window);
        let spot = (oldest[sequence] as usize + token) % places;
        queries[((sequence * places + spot) * heads + head) * d..][..d].copy_from_slice(numbers);
    }
    let ring = ring(&queries, heads, d, places, Some(&oldest));
    let mut memory = Memory::new(&compressor, &host.batch());
    let workspace = memory.workspace();
    let mut layer = host.layer(0);
    layer.layer = 3;

    let candidates = len - prompt - window;
    let mut scores = vec![f32::NAN; compressor.sizes(&host.batch()).unwrap().score_count];
    // SAFETY: the host's memory is what it says, here and below.
    unsafe { compressor.score(&layer, &host.batch(), &ring, &mut scores, workspace) }.unwrap();
    for (index, found) in scores.chunks(candidates).enumerate() {
        let size = group * window * d;
        let keys = &tensors[0][(index * len + prompt) * d..][..candidates * d];
        for (found, expected) in
            found
                .iter()
                .zip(reference::score(&q[index * size..][..size], keys, d, group))
        {
            // Rounding of float32 dot products and sums.
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs(),
                "{found} for {expected}"
            );
        }
    }
    let indices = file.get("indices");
    let (sets, count) = (indices.shape[1], indices.shape[2]);
    let mut expected: Vec<u32> = indices.i64().iter().map(|&i| i as u32).collect();
    expected.chunks_mut(count).for_each(<[u32]>::sort_unstable);
    let name = &fields["name"];
    let plan = if exact {
        // SAFETY: as above.
        let plan = unsafe { compressor.compress(&layer, &host.batch(), &ring, workspace) }.unwrap();
        assert_eq!(plan.kept, expected, "{name} {place:?}");
        plan
    } else {
        // The published code sums in bfloat16 there: its sets instead of ours.
        // SAFETY: as above.
        let ours: Plan<'_> = unsafe { compressor.select(3, &host.batch(), &scores, workspace) }.unwrap();
        let plan = Plan {
            kept: &expected,
            ..ours
        };
        // SAFETY: as above.
        unsafe { compressor.apply(&layer, &host.batch(), &plan, workspace) }.unwrap();
        plan
    };
    assert_eq!(plan.sets as usize, sets);
    assert_eq!(plan.kept_counts, vec![count as u32; batch]);
    host.adopt(&plan);
    assert_eq!(host.lengths, vec![after as i32; batch]);
    for (part, name) in ["k_out", "v_out"].into_iter().enumerate() {
        for (row, expected) in file.get(name).f32().chunks(d).enumerate() {
            let (sequence, kv_head) = (row / after / kv_heads, row / after % kv_heads);
            let found = host.get(part, [sequence, kv_head, row % after]);
            let expected: Vec<u8> = expected.iter().flat_map(|&x| bytes_of(dtype, x)).collect();
            assert_eq!(found.0, expected, "{name} {place:?}");
        }
    }
}
