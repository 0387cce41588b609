//! What a cache holds after prefill, compression, another turn.

use reasoning_rpc_core::Aggregation;
use reasoning_rpc_test_support::{Random, seed};

use super::{contents as bytes, fixed, none, prompt, prompt_up_to, rpc, run_pending, start, tiny, write};
use crate::{CacheType, Sequence};

/// Keys, values and positions of every layer and KV head, as bits.
fn contents(sequence: &Sequence) -> Vec<(Vec<u32>, Vec<u32>, Vec<u32>)> {
    let cache = sequence.cache.as_ref().unwrap();
    let (layers, kv_heads, head_dim) = {
        let shape = cache.shape();
        (shape.layers, shape.kv_heads, shape.head_dim)
    };
    let mut all = Vec::new();
    for (layer, kv_head) in (0..layers).flat_map(|l| (0..kv_heads).map(move |h| (l, h))) {
        let len = cache.head(layer, kv_head).len();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for entry in 0..len {
            let (key, value) = cache.entry_f32(layer, kv_head, entry);
            assert_eq!(key.len(), head_dim);
            keys.extend(key.iter().map(|x| x.to_bits()));
            values.extend(value.iter().map(|x| x.to_bits()));
        }
        let positions = (0..len)
            .map(|entry| cache.position(layer, kv_head, entry))
            .collect();
        all.push((keys, values, positions));
    }
    all
}

/// Two ways to the same bytes.
#[test]
fn a_view_shows_what_the_cache_holds() {
    let mut random = Random::new(seed());
    for model in ["golden/qwen2_p32-cached", "golden/qwen2_p32-portable"] {
        let engine = tiny(|options| options.model = reasoning_rpc_test_support::model(model));
        let mut sequence = start(&engine, rpc(32, 8, 4, Aggregation::KvHead), &[]);
        assert!(bytes(&sequence).iter().all(|head| head.2.is_empty()));
        sequence.append_tokens(&prompt(&mut random, 27)).unwrap();
        write(&engine, &mut sequence, 60);
        let bits = |bytes: &[u8]| -> Vec<u32> {
            let words = bytes.chunks_exact(4);
            words
                .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
                .collect()
        };
        let viewed: Vec<_> = bytes(&sequence)
            .iter()
            .map(|(keys, values, positions)| (bits(keys), bits(values), positions.clone()))
            .collect();
        assert_eq!(viewed, contents(&sequence));
        for (layer, kv_head, words) in [
            (3, 0, "layer: expected 0 to 2, found 3"),
            (0, 2, "KV head: expected 0 to 1, found 2"),
        ] {
            let error = sequence.cache_view(layer, kv_head).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

#[test]
fn prefill_in_chunks_of_any_size_gives_the_same_cache() {
    let mut random = Random::new(seed());
    let text = prompt(&mut random, 150);
    let whole = tiny(|options| options.prefill_chunk = 4096);
    let mut expected = start(&whole, none(), &text);
    run_pending(&whole, &mut expected);
    for chunk in [1, 2, 3, 7, 16, 31, 64, 149, 1 + random.below(149)] {
        let engine = tiny(|options| options.prefill_chunk = chunk);
        let mut sequence = start(&engine, none(), &text);
        run_pending(&engine, &mut sequence);
        assert_eq!(contents(&sequence), contents(&expected), "chunks of {chunk}");
        let bits = |s: &Sequence| {
            s.logits()
                .unwrap()
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&sequence), bits(&expected), "chunks of {chunk}");
    }
}

/// Compressing moves entries and changes none: each one that is left is, bit for bit, the one of the
/// same position in a cache that was never compressed, fed the same tokens up to the compression.
#[test]
fn a_compression_keeps_prompt_window_and_whole_entries() {
    let mut random = Random::new(seed());
    let types = [CacheType::F32, CacheType::F16, CacheType::Bf16, CacheType::I8];
    let cases = [Aggregation::Layer, Aggregation::KvHead].map(|aggregation| types.map(|t| (aggregation, t)));
    for (aggregation, cache_type) in cases.into_iter().flatten() {
        let engine = tiny(|options| options.cache_type = Some(cache_type));
        let text = prompt(&mut random, 21);
        let mut compressed = start(&engine, rpc(32, 8, 4, aggregation), &text);
        let mut full = start(&engine, none(), &text);
        run_pending(&engine, &mut compressed);
        for token in prompt(&mut random, 40) {
            compressed.accept(token).unwrap();
            full.accept(token).unwrap();
        }
        run_pending(&engine, &mut compressed);
        run_pending(&engine, &mut full);
        assert_eq!(compressed.stats().compressions, 1);
        for ((keys, values, positions), (all_keys, all_values, _)) in
            bytes(&compressed).iter().zip(bytes(&full))
        {
            assert_eq!(positions.len(), 21 + 8 + 8);
            assert_eq!(
                positions[..21],
                (0..21).collect::<Vec<u32>>()[..],
                "the prompt stays"
            );
            assert_eq!(
                positions[29..],
                (53..61).collect::<Vec<u32>>()[..],
                "the window stays"
            );
            assert!(positions.is_sorted());
            let size = 16 * cache_type.bytes() + cache_type.scale_bytes();
            for (entry, &position) in positions.iter().enumerate() {
                let from = position as usize * size;
                assert_eq!(keys[entry * size..][..size], all_keys[from..][..size]);
                assert_eq!(values[entry * size..][..size], all_values[from..][..size]);
            }
        }
    }
}

#[test]
fn a_second_turn_is_protected_and_only_generated_entries_go() {
    let mut random = Random::new(seed());
    for aggregation in [Aggregation::Layer, Aggregation::KvHead] {
        let engine = tiny(|_| {});
        let mut sequence = start(&engine, rpc(32, 8, 4, aggregation), &prompt(&mut random, 5));
        write(&engine, &mut sequence, 50);
        // 50 sampled, the last of them not run: it is run first, as a generated token.
        let second = prompt(&mut random, 17);
        sequence.append_tokens(&second).unwrap();
        write(&engine, &mut sequence, 60);
        run_pending(&engine, &mut sequence);
        assert_eq!(sequence.stats().prefill_tokens, 22);
        assert_eq!(sequence.stats().decode_tokens, 110);
        assert_eq!(sequence.stats().compressions, 3);
        for (_, _, positions) in contents(&sequence) {
            let given: Vec<u32> = positions
                .iter()
                .copied()
                .filter(|&p| p < 5 || (55..72).contains(&p))
                .collect();
            assert_eq!(given.len(), 22, "all given entries are there");
            // 3 compressions: 3 * 32 / 4 kept, and what was generated since the third (at 104).
            assert_eq!(positions.len(), 22 + 24 + 8 + (110 - 104));
            assert!(positions.windows(2).all(|pair| pair[0] < pair[1]));
        }
        for record in sequence.compressions() {
            for &position in record.kept.iter().flatten() {
                assert!(
                    position >= 5 && !(55..72).contains(&position),
                    "{position} was given"
                );
            }
        }
    }
}

#[test]
fn an_ample_budget_changes_nothing() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt(&mut random, 9);
    let mut full = start(&engine, none(), &text);
    let mut kept = start(&engine, fixed(24, 6, 119), &text);
    assert_eq!(write(&engine, &mut full, 120), write(&engine, &mut kept, 120));
    assert_eq!(kept.stats().compressions, 0);
}

#[test]
fn a_fixed_number_of_entries_is_never_exceeded() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt_up_to(&mut random, 40);
    let kept = 1 + random.below(60);
    let mut sequence = start(&engine, fixed(24, 6, kept), &text);
    sequence.reserve(200).unwrap();
    let mut most = 0;
    for _ in 0..200 {
        run_pending(&engine, &mut sequence);
        most = most.max(contents(&sequence)[0].2.len());
        sequence.sample().unwrap();
    }
    for record in sequence.compressions() {
        assert_eq!(record.len_after, text.len() + kept + 6);
        assert!(record.len_before > record.len_after && record.len_before <= text.len() + kept + 6 + 24);
        most = most.max(record.len_before);
    }
    assert_eq!(most, text.len() + kept + 6 + 24);
    assert_eq!(
        sequence.stats().cache_peak_bytes,
        engine.cache_shape().bytes(most)
    );
}

#[test]
fn a_ratio_of_one_changes_nothing() {
    let mut random = Random::new(seed());
    let engine = tiny(|_| {});
    let text = prompt(&mut random, 9);
    let mut full = start(&engine, none(), &text);
    let mut kept = start(&engine, rpc(24, 6, 1, Aggregation::KvHead), &text);
    assert_eq!(write(&engine, &mut full, 120), write(&engine, &mut kept, 120));
    assert_eq!(kept.stats().compressions, 4);
    run_pending(&engine, &mut full);
    run_pending(&engine, &mut kept);
    assert_eq!(contents(&full), contents(&kept));
}

/// Without a promise a buffer doubles as it grows; where only less fits, it grows by that.
#[test]
fn a_portable_cache_grows_to_the_end_of_its_budget() {
    let mut random = Random::new(seed());
    let model = reasoning_rpc_test_support::model("golden/qwen2_p32-portable");
    let whole = tiny(|options| options.model.clone_from(&model));
    let text = prompt(&mut random, 20);
    let shape = *start(&whole, none(), &text).cache.as_ref().unwrap().shape();
    // Neither a power of two nor twice what was there.
    let entries = 5 * shape.block_entries;
    let engine = tiny(|options| {
        options.model.clone_from(&model);
        options.budget = Some(shape.bytes(entries));
    });
    let mut sequence = start(&engine, none(), &text);
    write(&engine, &mut sequence, entries - text.len());
    run_pending(&engine, &mut sequence);
    assert_eq!(contents(&sequence)[0].2.len(), entries);
    sequence.sample().unwrap();
    let error = engine.step(&mut [&mut sequence]).unwrap_err();
    assert!(matches!(error, crate::Error::Budget { .. }), "{error}");
}
