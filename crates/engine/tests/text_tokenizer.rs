//! Tokenizers: against golden data, and against the `tokenizers` crate's own encoding and decoding.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // tests

mod text_support;

use reasoning_rpc_engine::Error;
use reasoning_rpc_engine::text::{Special, Tokenizer, encode_raw};
use serde_json::{Value, json};
use text_support::*;

/// The library itself, with control tokens as text or not.
fn library(json: &Value, plain: bool) -> tokenizers::Tokenizer {
    let mut hub = tokenizers::Tokenizer::from_bytes(json.to_string()).expect("a good tokenizer.json");
    hub.set_encode_special_tokens(plain);
    hub
}

#[test]
fn golden_texts_encode_and_decode() {
    let tokenizer = Tokenizer::from_json(&smollm2("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    let golden = json(&golden("smollm2/tokenizer_expected.json"));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 40);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = integers(&case["ids"]);
        assert_eq!(
            tokenizer.encode(text, Special::Parse).unwrap(),
            expected,
            "{text:?}"
        );
        assert_eq!(
            tokenizer.decode(&expected, false).unwrap(),
            case["decoded"].as_str().unwrap()
        );
    }
}

#[test]
fn control_tokens_are_parsed_or_plain() {
    let tokenizer = byte_level();
    let text = "a<|im_end|>b<think>c<｜User｜>d";
    let control = tokenizer.token_id("<|im_end|>").unwrap();
    let think = tokenizer.token_id("<think>").unwrap();
    let user = tokenizer.token_id("<｜User｜>").unwrap();

    let parsed = tokenizer.encode(text, Special::Parse).unwrap();
    assert!([control, think, user].iter().all(|id| parsed.contains(id)));
    let plain = tokenizer.encode(text, Special::Plain).unwrap();
    assert!(plain.contains(&think));
    assert!(!plain.contains(&control) && !plain.contains(&user));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&parsed, true).unwrap(), "ab<think>c<｜User｜>d");
    assert_eq!(tokenizer.decode(&parsed, false).unwrap(), text);
    assert!(tokenizer.is_special(control) && !tokenizer.is_special(think) && !tokenizer.is_special(9_999));
    assert_eq!(tokenizer.token_text(control).unwrap(), "<|im_end|>");
    assert_eq!(
        tokenizer
            .token_bytes(tokenizer.token_id("Ġhello").unwrap())
            .unwrap(),
        b" hello"
    );
}

/// All text through all kinds of tokenizers gives what the library gives. The unmarked turn marker, which
/// the library never takes as text, is left out of the plain comparison.
#[test]
fn encoding_agrees_with_the_library() {
    let mut random = Random::new();
    for (name, json) in all_kinds() {
        let tokenizer = tokenizer(&json);
        let hubs = [library(&json, false), library(&json, true)];
        for _ in 0..400 {
            let text = random.text(FRAGMENTS, 12);
            for (hub, special) in hubs.iter().zip([Special::Parse, Special::Plain]) {
                if special == Special::Plain && text.contains("<｜User｜>") {
                    continue;
                }
                let expected = hub.encode_fast(text.as_str(), false).unwrap();
                assert_eq!(
                    tokenizer.encode(&text, special).unwrap(),
                    expected.get_ids(),
                    "{name}, {special:?}, {text:?}"
                );
            }
        }
    }
}

/// Any ids decode as the library decodes them, but for two things that it spoils: a whole run of
/// byte-fallback tokens if any of them is broken (so there the comparison is over texts that encode), and
/// an added token with an accent in a byte-level vocabulary.
#[test]
fn decoding_agrees_with_the_library() {
    let mut random = Random::new();
    for (name, json) in all_kinds() {
        let tokenizer = tokenizer(&json);
        let hub = library(&json, false);
        for _ in 0..400 {
            let ids: Vec<u32> = if name == "byte level" {
                let size = tokenizer.vocab_size() as usize;
                let accent = tokenizer.token_id("Café");
                let ids = (0..random.below(20)).map(|_| random.below(size) as u32);
                ids.filter(|id| Some(*id) != accent).collect()
            } else {
                tokenizer
                    .encode(&random.text(FRAGMENTS, 12), Special::Parse)
                    .unwrap()
            };
            for skip in [false, true] {
                assert_eq!(
                    tokenizer.decode(&ids, skip).unwrap(),
                    hub.decode(&ids, skip).unwrap(),
                    "{name}, {ids:?}"
                );
            }
        }
    }
}

#[test]
fn broken_bytes_become_replacement_characters() {
    let tokenizer = tokenizer(&all_kinds().remove(1).1);
    let bytes = |bytes: &[u8]| -> Vec<u32> { bytes.iter().map(|byte| u32::from(*byte) + 1).collect() };
    for (given, expected) in [
        (&b"\xE4\xBD\xA0"[..], "你"),
        (b"\xE4\xBD", "\u{FFFD}"),
        (b"\xE4\xBDa", "\u{FFFD}a"),
        (b"\xE4\xBD\xA0\xFF\xE4\xBD\xA0", "你\u{FFFD}你"),
        (b"\xF0\x9F\x98\x80\x80", "😀\u{FFFD}"),
    ] {
        assert_eq!(tokenizer.decode(&bytes(given), false).unwrap(), expected);
        assert_eq!(String::from_utf8_lossy(given), expected);
    }
}

#[test]
fn added_tokens_decode_as_they_stand() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a Café ※", Special::Parse).unwrap();
    assert!(ids.contains(&tokenizer.token_id("Café").unwrap()));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a Café ※");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a Café ");
}

#[test]
fn ids_out_of_range_are_named() {
    let tokenizer = byte_level();
    let size = tokenizer.vocab_size();
    for id in [size, u32::MAX] {
        for error in [
            tokenizer.decode(&[0, id], false).unwrap_err(),
            tokenizer.token_text(id).unwrap_err(),
            tokenizer.token_bytes(id).unwrap_err(),
        ] {
            let Error::Text(text) = error else {
                panic!("{error:?}")
            };
            assert!(
                text.contains(&id.to_string()) && text.contains(&size.to_string()),
                "{text}"
            );
        }
    }
}

#[test]
fn raw_prompts_get_one_beginning() {
    let tokenizer = byte_level();
    let bos = tokenizer.token_id("<|im_start|>").unwrap();
    let with = |text: &str| encode_raw(&tokenizer, text, Some(bos)).unwrap();
    let plain = encode_raw(&tokenizer, "hello", None).unwrap();
    assert_eq!(with("hello"), [vec![bos], plain].concat());
    assert_eq!(with("<|im_start|>hello"), with("hello"));
    assert_eq!(with(""), [bos]);
    let size = tokenizer.vocab_size();
    assert!(matches!(
        encode_raw(&tokenizer, "", Some(size)),
        Err(Error::InvalidArgument(_))
    ));
}

/// Nothing of the post-processor, of truncation or of padding is applied.
#[test]
fn encoding_adds_and_cuts_nothing() {
    let mut json = byte_level_json(usual_tokens());
    let expected = tokenizer(&json)
        .encode("hello hello hello", Special::Parse)
        .unwrap();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!"
    });
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    });
    assert_eq!(
        tokenizer(&json)
            .encode("hello hello hello", Special::Parse)
            .unwrap(),
        expected
    );
}

#[test]
fn unusable_files_are_refused() {
    let good = byte_level_json(usual_tokens());
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        json
    };
    let vocabulary = |change: &dyn Fn(&mut Value)| {
        let mut json = byte_level_json(Vec::new());
        change(&mut json["model"]["vocab"]);
        json
    };
    for (json, expected) in [
        (json!({}), "tokenizer.json"),
        (changed(&|json| json["decoder"] = Value::Null), "decoder"),
        (
            changed(&|json| json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
            "WordPiece",
        ),
        (
            changed(&|json| json["model"]["dropout"] = json!(0.1)),
            "dropout is Some(0.1)",
        ),
        (
            changed(&|json| json["added_tokens"][3]["id"] = json!(9)),
            "\"<think>\" says id 9",
        ),
        (
            vocabulary(&|vocabulary| vocabulary["zz"] = json!(4_000_000_000u32)),
            "4000000000",
        ),
        (
            vocabulary(&|vocabulary| vocabulary["zz"] = json!(5)),
            "share the id 5",
        ),
        (
            changed(&|json| json["model"]["merges"][0] = json!("no such")),
            "tokenizer.json",
        ),
        // Its suffixes would take 50 GB.
        (
            changed(&|json| {
                let last = json["added_tokens"].as_array_mut().unwrap().last_mut().unwrap();
                last["content"] = json!(format!("<|{}|>", "x".repeat(300_000)));
                last["special"] = json!(true);
            }),
            "of 300004 bytes",
        ),
    ] {
        let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err();
        let Error::Model(text) = &error else {
            panic!("{error:?}")
        };
        assert!(text.contains(expected), "{text}");
    }
}

/// Damage is an error or another tokenizer, never a panic.
#[test]
fn damaged_files_do_no_harm() {
    let mut random = Random::new();
    let kinds = all_kinds();
    let mut loaded = 0;
    for round in 0..600 {
        let mut bytes = kinds[round % kinds.len()].1.to_string().into_bytes();
        for _ in 0..1 + random.below(3) {
            let place = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[place] = random.below(256) as u8,
                1 => bytes.truncate(place + 1),
                _ => bytes[place] = b"0123456789,:\"{}[]tf-"[random.below(20)],
            }
        }
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            loaded += 1;
            if let Ok(ids) = tokenizer.encode(&random.text(FRAGMENTS, 12), Special::Parse) {
                tokenizer.decode(&ids, false).unwrap();
            }
        }
    }
    println!("{loaded} of 600 damaged files loaded");
}

#[test]
fn tokenizers_are_shared() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    let tokenizer = byte_level();
    shared(&tokenizer);
    let expected = tokenizer.encode("hello <|im_end|>", Special::Parse).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let tokenizer = tokenizer.clone();
            let expected = &expected;
            scope.spawn(move || {
                for _ in 0..200 {
                    assert_eq!(
                        &tokenizer.encode("hello <|im_end|>", Special::Parse).unwrap(),
                        expected
                    );
                }
            });
        }
    });
}
