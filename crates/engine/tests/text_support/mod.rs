//! What the text and sampling tests share.
#![allow(dead_code, unused_imports)] // each test uses a part

use reasoning_rpc_engine::text::Tokenizer;
pub use reasoning_rpc_test_support::{golden, integers, json, model};
use serde_json::{Value, json};

/// Random inputs, fresh each run; `SEED=` replays them.
pub struct Random(reasoning_rpc_test_support::Random);

impl Random {
    pub fn new() -> Self {
        Self(reasoning_rpc_test_support::Random::new(
            reasoning_rpc_test_support::seed(),
        ))
    }

    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.below(end)
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal number.
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.unit(), self.unit());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Up to `count` of these strings, one after another.
    pub fn text(&mut self, from: &[&str], count: usize) -> String {
        (0..self.below(count + 1)).map(|_| self.pick(from)).collect()
    }
}

/// A file of the exported SmolLM2.
pub fn smollm2(file: &str) -> Vec<u8> {
    let path = model("smollm2-fp32").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An added token of a tokenizer.json, its id to be filled in.
pub fn added(content: &str, special: bool) -> Value {
    json!({
        "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special
    })
}

/// The same with one more field changed.
pub fn with(mut token: Value, field: &str, value: bool) -> Value {
    token[field] = value.into();
    token
}

/// The added tokens of most tests.
pub fn usual_tokens() -> Vec<Value> {
    vec![
        added("<|im_start|>", true),
        added("<|im_end|>", true),
        added("<｜User｜>", false),
        added("<think>", false),
        added("</think>", false),
        added("※", true),
        with(added("<sep>", true), "rstrip", true),
        with(added("<left>", false), "lstrip", true),
        with(added("word", false), "single_word", true),
        with(added("Café", false), "normalized", true),
        with(added("<norm>", true), "normalized", true),
        added("ENDTURN", true),
    ]
}

/// The characters that byte-level vocabularies write bytes as.
pub fn byte_chars() -> Vec<char> {
    let mut spare = 0x100u32..;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => char::from_u32(spare.next().expect("endless")).expect("no surrogate"),
        })
        .collect()
}

fn number(mut tokens: Vec<Value>, first: usize) -> Vec<Value> {
    for (index, token) in tokens.iter_mut().enumerate() {
        token["id"] = (first + index).into();
    }
    tokens
}

/// A byte-level tokenizer.json with all bytes, a few merges, and these added tokens after them.
pub fn byte_level_json(tokens: Vec<Value>) -> Value {
    let mut vocabulary: Vec<String> = byte_chars().iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    // The last two make pieces of characters: of "é", and of the emoji at U+1F600.
    for (left, right) in [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ġ", "hello"),
        ("Ġ", "Ġ"),
        ("<", "|"),
        ("|", ">"),
        ("i", "m"),
        ("e", "n"),
        ("en", "d"),
        ("Ã", "©"),
        ("ð", "Ł"),
    ] {
        vocabulary.push(format!("{left}{right}"));
        merges.push(format!("{left} {right}"));
    }
    let added = number(tokens, vocabulary.len());
    let vocabulary: serde_json::Map<String, Value> = vocabulary
        .into_iter()
        .enumerate()
        .map(|(id, text)| (text, id.into()))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges
        }
    })
}

/// A tokenizer.json as Llama 2's: words with `▁`, and tokens such as `<0x0A>` for the rest.
pub fn llama_json(tokens: Vec<Value>, pre_tokenizer: Value, normalizer: Value, decoder: Value) -> Value {
    let mut vocabulary: Vec<String> = vec!["<unk>".to_string()];
    vocabulary.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    vocabulary.extend("▁abcdefghilmnopst<>|_/é".chars().map(String::from));
    let mut merges = Vec::new();
    for (left, right) in [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("▁", "hello"),
        ("▁", "▁"),
        ("▁", "a"),
    ] {
        vocabulary.push(format!("{left}{right}"));
        merges.push(format!("{left} {right}"));
    }
    let added = number(tokens, vocabulary.len());
    let vocabulary: serde_json::Map<String, Value> = vocabulary
        .into_iter()
        .enumerate()
        .map(|(id, text)| (text, id.into()))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges
        }
    })
}

/// Every kind of tokenizer that the tests go through.
pub fn all_kinds() -> Vec<(&'static str, Value)> {
    let sequence = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]});
    let legacy = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    ]});
    let metaspace = |scheme: &str| {
        json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true
        })
    };
    vec![
        ("byte level", byte_level_json(usual_tokens())),
        (
            "legacy llama",
            llama_json(usual_tokens(), Value::Null, legacy, sequence.clone()),
        ),
        (
            "metaspace first",
            llama_json(usual_tokens(), metaspace("first"), Value::Null, sequence),
        ),
        (
            "metaspace always",
            llama_json(
                usual_tokens(),
                metaspace("always"),
                Value::Null,
                metaspace("always"),
            ),
        ),
        (
            "metaspace never",
            llama_json(
                usual_tokens(),
                metaspace("never"),
                Value::Null,
                metaspace("never"),
            ),
        ),
    ]
}

/// A tokenizer of ours.
pub fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).expect("a good tokenizer.json")
}

/// The byte-level one with the usual tokens.
pub fn byte_level() -> Tokenizer {
    tokenizer(&byte_level_json(usual_tokens()))
}

/// Pieces that random texts are made of: what is hard to tokenise or to decode, and the usual tokens
/// whole and in parts.
pub const FRAGMENTS: &[&str] = &[
    "hello",
    " hello",
    " ",
    "  ",
    "\n",
    "\t",
    "a",
    "word",
    "words",
    " word ",
    "é",
    "e\u{301}",
    "Café",
    "Cafe\u{301}",
    "😀",
    "👨\u{200D}👩\u{200D}👧",
    "世界",
    "日本",
    "\u{FFFD}",
    "\0",
    "▁",
    "<",
    "|",
    ">",
    "<|",
    "|>",
    "<|im",
    "_start|>",
    "im_end",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_<|im_end|>end|>",
    "<｜User｜>",
    "<think>",
    "</think>",
    "※",
    "<sep>",
    "<left>",
    "<norm>",
    "<no",
    "rm>",
    "|im_end|>",
    "user",
    "system",
    "ENDTURN",
    "END",
    "TURN",
];
