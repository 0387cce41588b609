//! The attention operator over a cache of each type, in a graph of its own, against attention in float64 over
//! the numbers as they were before they were cached. The bound follows from how the cache rounds.

use std::sync::Arc;

use reasoning_rpc_core::CacheShape;
use reasoning_rpc_cpu::Simd;
use reasoning_rpc_test_support::{Random, seed};

use crate::CacheType;
use crate::cache::{BlockPool, Kept, SequenceCache};
use crate::runner::StepRow;
use crate::runtime::{self, AttentionState, Input, Output, Session, operator_domain};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const SCALE: f32 = 0.125;

/// A model of one CachedAttention node whose inputs are the graph's, in the ONNX format's protobuf.
mod model {
    use super::*;

    const INPUTS: [(&str, u64); 7] = [
        ("q", FLOAT),
        ("k", FLOAT),
        ("v", FLOAT),
        ("positions", INT64),
        ("row_offsets", INT32),
        ("slots", INT64),
        ("inv_freq", FLOAT),
    ];
    /// Of `TensorProto.DataType`.
    const FLOAT: u64 = 1;
    const INT32: u64 = 6;
    const INT64: u64 = 7;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn number(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    fn float(field: u64, value: f32) -> Vec<u8> {
        [varint(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
    }

    fn message(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
        let body = parts.concat();
        [varint(field << 3 | 2), varint(body.len() as u64), body].concat()
    }

    fn text(field: u64, text: &str) -> Vec<u8> {
        message(field, &[text.as_bytes().to_vec()])
    }

    /// A graph's input or output.
    fn value(field: u64, name: &str, element: u64) -> Vec<u8> {
        let tensor = message(1, &[number(1, element)]);
        message(field, &[text(1, name), message(2, &[tensor])])
    }

    pub(super) fn bytes() -> Vec<u8> {
        let integer =
            |name: &str, value: usize| message(5, &[text(1, name), number(3, value as u64), number(20, 2)]);
        let real = |name: &str, value: f32| message(5, &[text(1, name), float(2, value), number(20, 1)]);
        let mut node: Vec<Vec<u8>> = INPUTS.iter().map(|(name, _)| text(1, name)).collect();
        node.extend([
            text(2, "out"),
            text(4, "CachedAttention"),
            text(7, "reasoning_rpc"),
            integer("layer", 0),
            integer("num_heads", HEADS),
            integer("num_kv_heads", KV_HEADS),
            integer("head_dim", HEAD_DIM),
            real("scale", SCALE),
            real("rope_attention_factor", 1.0),
        ]);
        let mut graph = vec![message(1, &node), text(2, "attention")];
        graph.extend(INPUTS.iter().map(|(name, element)| value(11, name, *element)));
        graph.push(value(12, "out", FLOAT));
        let opset = message(8, &[text(1, "reasoning_rpc"), number(2, 1)]);
        let stock = message(8, &[text(1, ""), number(2, 21)]);
        [number(1, 10), opset, stock, message(7, &graph)].concat()
    }
}

/// One row's part: tokens seen in earlier runs and new ones, before rotation.
struct Text {
    /// `[tokens][HEADS * HEAD_DIM]`.
    q: Vec<f32>,
    /// `[tokens][KV_HEADS * HEAD_DIM]`.
    k: Vec<f32>,
    v: Vec<f32>,
    tokens: usize,
    cache: Option<Box<SequenceCache>>,
}

fn rotated(x: &[f32], position: usize, frequencies: &[f32]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for (pair, &frequency) in frequencies.iter().enumerate() {
        // The angle is the operator's, a float32: what a rotation is to be is not in question here.
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (a, b) = (f64::from(x[pair]), f64::from(x[pair + half]));
        out[pair] = a * cos - b * sin;
        out[pair + half] = b * cos + a * sin;
    }
    out
}

fn most(row: &[f64]) -> f64 {
    row.iter().fold(0.0f64, |most, x| most.max(x.abs()))
}

/// What rounding a number of `row` to the cache's type changes it by, at most.
fn half_step(cache: CacheType, row: &[f64], x: f64) -> f64 {
    match cache {
        CacheType::F32 => 0.0,
        // 11 bits of precision; steps of 2^-24 below 2^-14.
        CacheType::F16 => x.abs() * 2f64.powi(-11) + 2f64.powi(-25),
        CacheType::Bf16 => x.abs() * 2f64.powi(-8),
        CacheType::I8 => most(row) / 127.0 / 2.0,
    }
}

/// Float32 arithmetic, relative to the magnitudes summed: some 100 roundings of 2^-24 in a row.
const FLOAT: f64 = 1e-5;

/// The attention of token `token`, query head `head`: each element, and by how much it may be off.
fn reference(
    text: &Text,
    frequencies: &[f32],
    token: usize,
    head: usize,
    cache: CacheType,
) -> (Vec<f64>, f64) {
    let of = |data: &[f32], heads: usize, at: usize, head: usize| -> Vec<f32> {
        data[(at * heads + head) * HEAD_DIM..][..HEAD_DIM].to_vec()
    };
    let kv_head = head / (HEADS / KV_HEADS);
    let query = rotated(&of(&text.q, HEADS, token, head), token, frequencies);
    let scale = f64::from(SCALE);
    let (mut logits, mut values) = (Vec::new(), Vec::new());
    let (mut logit_error, mut value_error) = (0.0f64, 0.0f64);
    for entry in 0..=token {
        let key = rotated(&of(&text.k, KV_HEADS, entry, kv_head), entry, frequencies);
        let value: Vec<f64> = of(&text.v, KV_HEADS, entry, kv_head)
            .into_iter()
            .map(f64::from)
            .collect();
        logits.push(scale * query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>());
        let mut error = 0.0;
        for (q, &k) in query.iter().zip(&key) {
            let step = half_step(cache, &key, k);
            error += q.abs() * step + FLOAT * (q * k).abs();
            if cache == CacheType::I8 {
                // Queries are rounded to 16 bits for sums of integers.
                error += most(&query) / 32767.0 / 2.0 * (k.abs() + step);
            }
        }
        logit_error = logit_error.max(scale * error + FLOAT);
        for &x in &value {
            value_error = value_error.max(half_step(cache, &value, x));
        }
        values.push(value);
    }
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let out = |d: usize| weights.iter().zip(&values).map(|(w, v)| w * v[d]).sum::<f64>() / total;
    // Every weight changes by a factor within exp(-2 e) to exp(2 e), and adds up to 1 before and after.
    let factor = (2.0 * logit_error).exp();
    let magnitude = values.iter().map(|value| most(value)).fold(0.0f64, f64::max);
    let mut bound = (factor - 1.0) * magnitude + factor * value_error + FLOAT * magnitude;
    if cache == CacheType::I8 {
        // Weights, too, a tile of 64 at a time: each by half a step of the largest of them.
        bound += 64.0 * magnitude / 32767.0 / 2.0 * factor;
    }
    ((0..HEAD_DIM).map(out).collect(), bound)
}

fn session(threads: usize) -> (Session, Arc<AttentionState>) {
    let environment = runtime::load(None).unwrap();
    let state = Arc::new(AttentionState::new(Simd::from_env().unwrap(), threads));
    let domain = operator_domain(&state).unwrap();
    let path = std::env::temp_dir().join(format!("rrpc-operator-{}-{threads}.onnx", std::process::id()));
    std::fs::write(&path, model::bytes()).unwrap();
    let session = Session::open(&environment, &path, threads, Some(domain), None);
    std::fs::remove_file(&path).unwrap();
    (session.unwrap(), state)
}

/// Runs the next `counts` tokens of the texts, in one run; the output of each.
fn run(
    (session, state): &mut (Session, Arc<AttentionState>),
    texts: &mut [Text],
    counts: &[usize],
    frequencies: &[f32],
) -> Vec<Vec<f32>> {
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    let (mut positions, mut offsets, mut slots) = (Vec::new(), vec![0], Vec::new());
    for (slot, (text, &count)) in (100..).zip(texts.iter_mut().zip(counts)) {
        let mut cache = text.cache.take().unwrap();
        let start = cache.head(0, 0).len();
        cache.grow(count).unwrap();
        let part = |data: &[f32], heads: usize| {
            data[start * heads * HEAD_DIM..(start + count) * heads * HEAD_DIM].to_vec()
        };
        q.extend(part(&text.q, HEADS));
        k.extend(part(&text.k, KV_HEADS));
        v.extend(part(&text.v, KV_HEADS));
        positions.extend((start..start + count).map(|position| position as i64));
        offsets.push(positions.len() as i32);
        slots.push(slot);
        state.step().rows.push(StepRow {
            slot,
            cache,
            first_generated: None,
            attention: None,
        });
    }
    let (tokens, rows) = (positions.len() as i64, slots.len() as i64);
    let mut out = vec![0.0; q.len()];
    let mut frequencies = frequencies.to_vec();
    let float = |data: &mut Vec<f32>| {
        let output = Output::new(data);
        Input::F32(output.data, output.len)
    };
    let (wide, narrow) = ((HEADS * HEAD_DIM) as i64, (KV_HEADS * HEAD_DIM) as i64);
    session
        .run(
            &[
                (c"q", &[tokens, wide], float(&mut q)),
                (c"k", &[tokens, narrow], float(&mut k)),
                (c"v", &[tokens, narrow], float(&mut v)),
                (c"positions", &[tokens], Input::I64(&positions)),
                (c"row_offsets", &[rows + 1], Input::I32(&offsets)),
                (c"slots", &[rows], Input::I64(&slots)),
                (c"inv_freq", &[HEAD_DIM as i64 / 2], float(&mut frequencies)),
            ],
            &[(c"out", &[tokens, wide], Output::new(&mut out))],
        )
        .unwrap();
    let mut parts = Vec::new();
    for ((text, mut row), range) in texts
        .iter_mut()
        .zip(state.step().rows.drain(..))
        .zip(offsets.windows(2))
    {
        let start = row.cache.head(0, 0).len() as u32;
        row.cache.commit(start..start + (range[1] - range[0]) as u32);
        text.cache = Some(row.cache);
        parts.push(out[range[0] as usize * HEADS * HEAD_DIM..range[1] as usize * HEADS * HEAD_DIM].to_vec());
    }
    parts
}

#[test]
fn attention_over_any_cache_is_attention_up_to_its_rounding() {
    let mut random = Random::new(seed());
    let frequencies: Vec<f32> = (0..HEAD_DIM / 2).map(|pair| 0.7f32.powi(pair as i32)).collect();
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Bf16, CacheType::I8] {
        let shape = CacheShape {
            layers: 1,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            element_bytes: cache_type.bytes(),
            scale_bytes: cache_type.scale_bytes(),
            block_entries: 16,
        };
        let pool = Arc::new(BlockPool::new(64 << 20, shape.block_bytes()).unwrap());
        // One longer than a chunk of attention, so that threads share it.
        let lengths = [
            1 + random.below(100),
            1100 + random.below(400),
            1 + random.below(70),
        ];
        let mut texts: Vec<Text> = lengths
            .iter()
            .map(|&tokens| {
                // Keys of different sizes, so that scales differ.
                let mut numbers = |heads: usize, spread: f32| -> Vec<f32> {
                    (0..tokens * heads)
                        .flat_map(|_| {
                            let size = spread * (1.0 + random.number().abs());
                            (0..HEAD_DIM)
                                .map(|_| size * random.number())
                                .collect::<Vec<f32>>()
                        })
                        .collect()
                };
                Text {
                    q: numbers(HEADS, 0.4),
                    k: numbers(KV_HEADS, 1.0),
                    v: numbers(KV_HEADS, 3.0),
                    tokens,
                    cache: Some(Box::new(SequenceCache::new(
                        Arc::clone(&pool),
                        shape,
                        cache_type,
                        false,
                        HEADS * HEAD_DIM,
                        Kept::default(),
                    ))),
                }
            })
            .collect();
        let mut session = session(2);
        // All but the last token, in chunks; then a token of each.
        let mut worst = 0.0f64;
        let mut bounds = 0.0f64;
        loop {
            let left: Vec<usize> = texts
                .iter()
                .map(|text| text.tokens - text.cache.as_ref().unwrap().head(0, 0).len())
                .collect();
            if left.iter().all(|&left| left == 0) {
                break;
            }
            let most = left.iter().map(|&left| if left > 1 { left - 1 } else { left });
            let counts: Vec<usize> = match left.iter().all(|&left| left <= 1) {
                true => left.clone(),
                false => most.map(|most| most.min(1 + random.below(400))).collect(),
            };
            let starts: Vec<usize> = texts
                .iter()
                .zip(&left)
                .map(|(text, left)| text.tokens - left)
                .collect();
            let found = run(&mut session, &mut texts, &counts, &frequencies);
            for ((text, found), (start, count)) in texts.iter().zip(&found).zip(starts.iter().zip(&counts)) {
                // Of a long chunk some tokens, the last one always.
                let some = (0..*count).filter(|index| index + 1 == *count || random.below(40) == 0);
                for index in some {
                    for head in 0..HEADS {
                        let (expected, bound) =
                            reference(text, &frequencies, start + index, head, cache_type);
                        let row = &found[(index * HEADS + head) * HEAD_DIM..][..HEAD_DIM];
                        for (found, expected) in row.iter().zip(&expected) {
                            let error = (f64::from(*found) - expected).abs();
                            assert!(
                                error <= bound,
                                "{cache_type:?}: {found} for {expected}, bound {bound}"
                            );
                            worst = worst.max(error);
                        }
                        bounds = bounds.max(bound);
                    }
                }
            }
        }
        eprintln!("{cache_type:?}: largest error {worst:e}, largest bound {bounds:e}");
        // Values are up to 6: a bound that says something, and a cache that was rounded at all.
        assert!(bounds < 1.0);
        assert_eq!(worst > 2e-4, cache_type != CacheType::F32);
        drop(texts);
        assert_eq!(pool.used(), 0);
    }
}
