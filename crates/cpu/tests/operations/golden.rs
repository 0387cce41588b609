//! The published method's own results (`tests/golden/compaction` of the repository, or the folder that `RRPC_GOLDEN` names): scores,
//! chosen entries and the compacted cache.

use crate::paths;
use reasoning_rpc_cpu::*;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    std::env::var_os("RRPC_GOLDEN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/compaction"),
        PathBuf::from,
    )
}

/// A file: every tensor as numbers (`f32` and `bf16` exactly, indices as they are).
struct Case {
    name: String,
    parameters: Value,
    tensors: HashMap<String, Vec<f32>>,
}

impl Case {
    fn read(path: &Path) -> Case {
        let bytes = std::fs::read(path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        let parameters = serde_json::from_str(json["__metadata__"]["case"].as_str().unwrap()).unwrap();
        let mut tensors = HashMap::new();
        for (name, tensor) in json
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "__metadata__")
        {
            let at = |i: usize| header + tensor["data_offsets"][i].as_u64().unwrap() as usize;
            let data = &bytes[at(0)..at(1)];
            let numbers = match tensor["dtype"].as_str().unwrap() {
                "F32" => data
                    .chunks(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                "BF16" => data
                    .chunks(2)
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b.try_into().unwrap())) << 16))
                    .collect(),
                "I64" => data
                    .chunks(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                    .collect(),
                other => panic!("{other} in {}", path.display()),
            };
            tensors.insert(name.clone(), numbers);
        }
        Case {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            parameters,
            tensors,
        }
    }

    fn number(&self, name: &str) -> usize {
        self.parameters[name].as_u64().unwrap() as usize
    }

    fn text(&self, name: &str) -> &str {
        self.parameters[name].as_str().unwrap()
    }
}

/// Mean (padding counted) or maximum over `width` neighbours.
fn pool(scores: &[f32], width: usize, average: bool) -> Vec<f32> {
    let half = width / 2;
    (0..scores.len())
        .map(|i| {
            let near = &scores[i.saturating_sub(half)..(i + half + 1).min(scores.len())];
            if average {
                near.iter().sum::<f32>() / width as f32
            } else {
                near.iter().copied().fold(f32::NEG_INFINITY, f32::max)
            }
        })
        .collect()
}

/// The `count` best, ties to the lower index, ascending.
fn best(scores: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[test]
fn scores_choices_and_compacted_caches() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap_or_else(|error| panic!("{}: {error}", folder().display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no golden data in {}", folder().display());
    for path in files {
        let case = Case::read(&path);
        for simd in paths() {
            check(simd, &case);
        }
    }
}

fn check(simd: Simd, case: &Case) {
    let (heads, kv_heads, d) = (
        case.number("num_q_heads"),
        case.number("num_kv_heads"),
        case.number("head_dim"),
    );
    let (len, after) = (case.number("cache_len_before"), case.number("cache_len_after"));
    let (prompt, r, group) = (case.number("prompt_len"), case.number("R"), heads / kv_heads);
    let candidates = prompt..len - r;
    let keep = after - prompt - r;
    let exact = case.text("dtype") == "float32";
    let per_layer = case.text("aggregation") == "all";
    let sets = if per_layer { 1 } else { kv_heads };
    let layout = Layout::contiguous(len, d);
    let mut scratch = Scratch::new();
    for b in 0..case.number("batch") {
        let part = |name: &str, i: usize, size: usize| case.tensors[name][i * size..(i + 1) * size].to_vec();
        let mut caches: Vec<(Vec<f32>, Vec<f32>)> = (0..kv_heads)
            .map(|h| {
                (
                    part("k", b * kv_heads + h, len * d),
                    part("v", b * kv_heads + h, len * d),
                )
            })
            .collect();
        let mut scores = Vec::new();
        for (h, (k, v)) in caches.iter().enumerate() {
            let queries = part("q", b * kv_heads + h, group * r * d);
            let pages = KvPages::dense(k, v, layout, len).unwrap();
            let mut out = vec![0.0; candidates.len()];
            let ranges = std::slice::from_ref(&candidates);
            score(
                simd,
                &pages,
                ranges,
                &queries,
                group,
                1.0 / (d as f32).sqrt(),
                &mut out,
                &mut scratch,
            )
            .unwrap();
            scores.push(out);
        }
        if per_layer {
            let mean = (0..candidates.len())
                .map(|c| scores.iter().map(|s| s[c]).sum::<f32>() / kv_heads as f32)
                .collect();
            scores = vec![mean];
        }
        for (set, scores) in scores.iter().enumerate() {
            let pooled = pool(
                scores,
                case.number("kernel_size"),
                case.text("pooling") == "avgpool",
            );
            let expected = part("scores", b * sets + set, candidates.len());
            for (c, (found, expected)) in pooled.iter().zip(&expected).enumerate() {
                // Both sides sum up to R * heads `f32` probabilities that carry rounding errors of a dot product: well below 1e-5 of the
                // score. `bf16` sums carry 8 bits: half a unit per addition of two.
                let tolerance = if exact { 1e-5 } else { 0.05 };
                let error = (found - expected).abs();
                assert!(
                    error <= tolerance * expected.abs(),
                    "{} {} score {c}: {found} for {expected}",
                    case.name,
                    simd.name()
                );
            }
            let indices: Vec<u32> = part("indices", b * sets + set, keep)
                .into_iter()
                .map(|i| i as u32)
                .collect();
            if exact {
                assert_eq!(
                    best(&pooled, keep),
                    indices,
                    "{} {} batch {b} set {set}",
                    case.name,
                    simd.name()
                );
            }
            let kept: Vec<u32> = indices
                .iter()
                .map(|i| i + prompt as u32)
                .chain((len - r) as u32..len as u32)
                .collect();
            let these = if per_layer { 0..kv_heads } else { set..set + 1 };
            for h in these {
                let (k, v) = &mut caches[h];
                let mut pages = KvPagesMut::dense(k, v, layout, len).unwrap();
                assert_eq!(compact(simd, &mut pages, prompt, &kept), Ok(after));
                for (name, ours) in [("k_out", &*k), ("v_out", &*v)] {
                    assert_eq!(
                        ours[..after * d],
                        part(name, b * kv_heads + h, after * d),
                        "{} {name}",
                        case.name
                    );
                }
            }
        }
    }
}
