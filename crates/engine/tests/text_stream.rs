//! Streamed text and stop strings.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // tests

mod text_support;

use std::time::Instant;

use reasoning_rpc_engine::Error;
use reasoning_rpc_engine::text::{Special, StopStrings, TextStream, Tokenizer};
use text_support::*;

/// Streams `ids`; each piece is checked to hold no half character, which `expected` would not have there.
fn stream(tokenizer: &Tokenizer, ids: &[u32], with_special: bool) -> String {
    let mut stream = TextStream::with_special(with_special);
    let mut text = String::new();
    for id in ids {
        text.push_str(stream.push(tokenizer, *id).unwrap());
    }
    text.push_str(stream.finish());
    assert_eq!(stream.finish(), "");
    text
}

#[test]
fn the_stream_is_the_whole_text() {
    let mut random = Random::new();
    for (name, json) in all_kinds() {
        let tokenizer = tokenizer(&json);
        let hub = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        let size = tokenizer.vocab_size() as usize;
        for _ in 0..300 {
            let ids: Vec<u32> = (0..random.below(40)).map(|_| random.below(size) as u32).collect();
            for skip in [true, false] {
                let text = stream(&tokenizer, &ids, !skip);
                assert_eq!(text, tokenizer.decode(&ids, skip).unwrap(), "{name}, {ids:?}");
                // The library spoils an added token with an accent.
                if name == "byte level" && !ids.contains(&tokenizer.token_id("Café").unwrap()) {
                    assert_eq!(text, hub.decode(&ids, skip).unwrap(), "{ids:?}");
                }
            }
        }
    }
}

/// A text that goes on in a second stream is the whole one, with the space between the two.
#[test]
fn a_stream_continues_another() {
    let mut random = Random::new();
    let mut kept = 0;
    for (name, json) in all_kinds() {
        let tokenizer = tokenizer(&json);
        for _ in 0..100 {
            let ids = tokenizer
                .encode(
                    &format!("begin {}", random.text(&["hello", " ", "one", " two"], 8)),
                    Special::Plain,
                )
                .unwrap();
            let (first, rest) = ids.split_at(1 + random.below(ids.len()));
            let mut stream = TextStream::continuing(false);
            let mut text = String::new();
            for &id in rest {
                text.push_str(stream.push(&tokenizer, id).unwrap());
            }
            text.push_str(stream.finish());
            let whole = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(
                tokenizer.decode(first, true).unwrap() + &text,
                whole,
                "{name}, {ids:?}"
            );
            kept += usize::from(text != tokenizer.decode(rest, true).unwrap());
        }
    }
    assert!(kept > 0, "some tokenizer leaves a text's first space out");
}

/// Characters cut into single bytes come out whole, each with its last byte, and nothing else ever comes out.
#[test]
fn characters_are_never_split() {
    let mut random = Random::new();
    let tokenizer = byte_level();
    let chars = byte_chars();
    let ids: Vec<u32> = chars
        .iter()
        .map(|c| tokenizer.token_id(&c.to_string()).unwrap())
        .collect();
    for _ in 0..200 {
        let text = random.text(
            &[
                "😀",
                "👨\u{200D}👩\u{200D}👧",
                "世界",
                "e\u{301}",
                "日本語",
                "a",
                "é",
                "🇩🇪",
                "क्षि",
            ],
            10,
        );
        let mut stream = TextStream::new();
        let mut done = String::new();
        for (at, byte) in text.bytes().enumerate() {
            done.push_str(stream.push(&tokenizer, ids[byte as usize]).unwrap());
            let whole = (0..=at + 1)
                .rev()
                .find(|end| text.is_char_boundary(*end))
                .unwrap();
            assert_eq!(done, text[..whole]);
        }
        assert_eq!(stream.finish(), "");
    }
    // Tokens of several bytes, some of which end within a character.
    for _ in 0..200 {
        let text = random.text(FRAGMENTS, 10).replace('\u{FFFD}', "");
        let ids = tokenizer.encode(&text, Special::Plain).unwrap();
        let mut stream = TextStream::new();
        for id in ids {
            assert!(
                !stream.push(&tokenizer, id).unwrap().contains('\u{FFFD}'),
                "{text:?}"
            );
        }
        assert_eq!(stream.finish(), "");
    }
}

#[test]
fn broken_bytes_are_released_as_soon_as_they_are_broken() {
    let tokenizer = byte_level();
    let ids: Vec<u32> = byte_chars()
        .iter()
        .map(|c| tokenizer.token_id(&c.to_string()).unwrap())
        .collect();
    let mut stream = TextStream::new();
    let mut push = |byte: u8| stream.push(&tokenizer, ids[byte as usize]).unwrap().to_string();
    // Never more than three bytes wait.
    assert_eq!([0xF0, 0x9F, 0x98].map(&mut push), ["", "", ""]);
    assert_eq!(push(b'a'), "\u{FFFD}a");
    assert_eq!(push(0x80), "\u{FFFD}");
    assert_eq!(push(0xE4), "");
    assert_eq!(push(0xE4), "\u{FFFD}");
    assert_eq!(stream.finish(), "\u{FFFD}");
    // Special tokens between the bytes of a character leave it whole.
    let special = tokenizer.token_id("<|im_end|>").unwrap();
    for id in [ids[0xC3], special] {
        assert_eq!(stream.push(&tokenizer, id).unwrap(), "");
    }
    assert_eq!(stream.push(&tokenizer, ids[0xA9]).unwrap(), "é");
}

#[test]
fn an_unknown_id_leaves_the_stream_as_it_was() {
    let tokenizer = byte_level();
    let mut stream = TextStream::new();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    assert_eq!(stream.push(&tokenizer, id("Ã")).unwrap(), "");
    assert!(matches!(stream.push(&tokenizer, 1_000_000), Err(Error::Text(_))));
    assert_eq!(stream.push(&tokenizer, id("©")).unwrap(), "é");
}

#[test]
fn a_token_costs_the_same_at_the_end_of_a_long_text() {
    let tokenizer = byte_level();
    let ids = tokenizer
        .encode(&" hello世 😀".repeat(20_000), Special::Plain)
        .unwrap();
    let mut stream = TextStream::new();
    let mut push = |ids: &[u32]| {
        let start = Instant::now();
        for id in ids {
            stream.push(&tokenizer, *id).unwrap();
        }
        start.elapsed()
    };
    let parts: Vec<_> = ids.chunks(ids.len() / 10).map(&mut push).collect();
    println!("{} tokens; time for each tenth {parts:?}", ids.len());
    // The quickest of each half, so that a busy machine does not matter.
    let (first, last) = (
        parts[..5].iter().min().unwrap(),
        parts[5..10].iter().min().unwrap(),
    );
    assert!(*last < *first * 10);
}

/// Where the first complete stop string ends, character by character.
fn plain_stop(text: &str, stops: &[String]) -> Option<(usize, usize)> {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    for end in ends {
        let complete = stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| text[..end].ends_with(stop.as_str()));
        if let Some((index, stop)) =
            complete.max_by_key(|(index, stop)| (stop.len(), std::cmp::Reverse(*index)))
        {
            return Some((index, end - stop.len()));
        }
    }
    None
}

#[test]
fn stop_strings_agree_with_a_plain_search() {
    let mut random = Random::new();
    let letters = ["a", "b", "ab", "é", "😀", "aa", "ba"];
    for _ in 0..3000 {
        let stops: Vec<String> = (0..1 + random.below(3))
            .map(|_| random.text(&letters, 4) + random.pick(&letters))
            .collect();
        let text = random.text(&letters, 14);
        let mut filter = StopStrings::new(&stops).unwrap();
        let mut out = String::new();
        let mut matched = None;
        let mut rest = text.as_str();
        while !rest.is_empty() && matched.is_none() {
            let ends: Vec<usize> = rest.char_indices().map(|(at, c)| at + c.len_utf8()).collect();
            let (piece, later) = rest.split_at(ends[random.below(ends.len())]);
            matched = filter.push(piece, &mut out);
            rest = later;
            // What is held back is the beginning of a stop string.
            let held = &text[out.len()..text.len() - rest.len()];
            assert!(matched.is_some() || held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
        }
        filter.finish(&mut out);
        let expected = plain_stop(&text, &stops);
        assert_eq!(matched, expected.map(|(index, _)| index), "{text:?} {stops:?}");
        assert_eq!(
            out,
            text[..expected.map_or(text.len(), |(_, start)| start)],
            "{text:?} {stops:?}"
        );
    }
}

#[test]
fn stop_strings_by_example() {
    let run = |stops: &[&str], pieces: &[&str]| {
        let mut filter = StopStrings::new(stops).unwrap();
        let mut out = String::new();
        let matched = pieces
            .iter()
            .map(|piece| filter.push(piece, &mut out))
            .last()
            .flatten();
        filter.finish(&mut out);
        (matched, out)
    };
    assert_eq!(
        run(&["stop"], &["a st", "o", "p more"]),
        (Some(0), "a ".to_string())
    );
    assert_eq!(run(&["stop"], &["a st", "o", "n"]), (None, "a ston".to_string()));
    assert_eq!(run(&["abc", "ab"], &["xabc"]), (Some(1), "x".to_string()));
    assert_eq!(run(&["aab"], &["aa", "a", "b"]), (Some(0), "a".to_string()));
    assert_eq!(run(&["b", "ab"], &["xab"]), (Some(1), "x".to_string()));
    assert_eq!(
        run(&["世界"], &["你好世", "界", "x"]),
        (Some(0), "你好".to_string())
    );
    assert_eq!(run(&[], &["anything"]), (None, "anything".to_string()));
    let error = StopStrings::new(["a", ""]).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument(text) if text.contains("stop string 1")),
        "{error}"
    );

    // After a match the filter takes nothing more, until it begins anew.
    let mut filter = StopStrings::new(["."]).unwrap();
    let mut out = String::new();
    assert_eq!(filter.push("a.b", &mut out), Some(0));
    assert_eq!(filter.push("c", &mut out), Some(0));
    filter.finish(&mut out);
    assert_eq!(out, "a");
    assert_eq!(filter.push("d", &mut out), None);
    assert_eq!(out, "ad");
}
