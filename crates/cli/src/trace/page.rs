//! The page: a trace as one HTML file that needs nothing else. Kept sets are bits, scores are bytes.

use reasoning_rpc_engine::Candidates;
use serde::Serialize;

use super::{Round, Trace};

const TEMPLATE: &str = include_str!("page.html");

/// A compression of all layers.
#[derive(Serialize)]
struct Packed {
    at_token: usize,
    window_start: usize,
    /// Kept sets of a layer: 1, or one for each KV head.
    sets: usize,
    /// Of each layer and set, a bit for each candidate, the first in the lowest bit of the first byte; each
    /// set begins with a byte of its own. Base64.
    kept: String,
    /// Of each layer and KV head, a byte for each candidate ([`levels`]). Base64; absent without scores.
    scores: Option<String>,
    /// Of each layer and KV head, the logarithms of the least and the greatest score above 0.
    ranges: Vec<[f32; 2]>,
}

/// The page of a trace.
///
/// # Errors
/// The records are not those of one text whose given part is its beginning.
pub fn html(trace: &Trace<'_>) -> anyhow::Result<String> {
    let mut before: Option<&Round<'_>> = None;
    let mut compressions = Vec::with_capacity(trace.rounds.len());
    for round in &trace.rounds {
        compressions.push(pack(round, before, trace.prompt_tokens)?);
        before = Some(round);
    }
    let data = trace.with(compressions);
    let Some((head, tail)) = TEMPLATE.split_once("@DATA@") else {
        anyhow::bail!("the page's template has no place for the data");
    };
    Ok([head, &inside_script(&serde_json::to_string(&data)?), tail].concat())
}

/// JSON that ends no script and begins no comment in it, and is a script's text too.
fn inside_script(json: &str) -> String {
    // Outside of strings JSON has none of these.
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn pack(round: &Round<'_>, before: Option<&Round<'_>>, prompt_tokens: usize) -> anyhow::Result<Packed> {
    let sets = round.layers.first().map_or(1, |record| record.kept.len());
    let (mut kept, mut scores, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    for (layer, record) in round.layers.iter().enumerate() {
        for (kv_head, candidates) in record.candidates.iter().enumerate() {
            let set = if sets == 1 { 0 } else { kv_head };
            // The page knows the candidates by this.
            let fresh = before.map_or(prompt_tokens, |before| before.window_start);
            let earlier = before.map_or(&[][..], |before| &before.layers[layer].kept[set]);
            let expected = earlier
                .iter()
                .copied()
                .chain(fresh as u32..round.window_start as u32);
            if !expected.eq(candidates.positions.iter().copied()) {
                anyhow::bail!(
                    "layer {layer}, KV head {kv_head}: expected as candidates at {} generated tokens what was kept \
                     before, and positions {fresh} to {}; found others",
                    round.at_token,
                    round.window_start
                );
            }
            if set == kv_head {
                kept.extend(bits(candidates, &record.kept[set]));
            }
            let (levels, range) = levels(&candidates.scores);
            scores.extend(levels);
            ranges.push(range);
        }
    }
    Ok(Packed {
        at_token: round.at_token,
        window_start: round.window_start,
        sets,
        kept: base64(&kept),
        scores: (!scores.is_empty()).then(|| base64(&scores)),
        ranges,
    })
}

/// A bit for each candidate.
fn bits(candidates: &Candidates, kept: &[u32]) -> Vec<u8> {
    let mut bits = vec![0; candidates.positions.len().div_ceil(8)];
    for (index, position) in candidates.positions.iter().enumerate() {
        if kept.binary_search(position).is_ok() {
            bits[index / 8] |= 1 << (index % 8);
        }
    }
    bits
}

/// A byte for each score: 0 for 0, else 1 to 255, evenly between the logarithms of the least and the greatest,
/// which are given too. So a score is off by a factor of at most (greatest / least)^(1 / 508).
fn levels(scores: &[f32]) -> (Vec<u8>, [f32; 2]) {
    let logarithm = |score: f32| (score > 0.0).then(|| score.ln());
    let all = || scores.iter().copied().filter_map(logarithm);
    let (low, high) = all().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| {
        (low.min(x), high.max(x))
    });
    if low > high {
        return (vec![0; scores.len()], [0.0, 0.0]);
    }
    let width = (high - low).max(f32::MIN_POSITIVE);
    let level = |x: f32| 1 + ((x - low) / width * 254.0).round() as u8;
    let levels = scores.iter().map(|&score| logarithm(score).map_or(0, level));
    (levels.collect(), [low, high])
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (index, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            text.push(match index <= group.len() {
                true => char::from(LETTERS[(word >> shift & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn levels_are_as_near_as_said() {
        let scores = [0.0, 1e-6, 3.7e-3, 0.25, 31.0, 0.0, 2e-6];
        let (levels, [low, high]) = levels(&scores);
        assert_eq!((levels[0], levels[1], levels[4]), (0, 1, 255));
        let factor = (31.0f32 / 1e-6).powf(1.0 / 508.0) * 1.001;
        for (&score, &level) in scores.iter().zip(&levels).filter(|(score, _)| **score > 0.0) {
            let found = (low + (f32::from(level) - 1.0) / 254.0 * (high - low)).exp();
            assert!(
                found / score < factor && score / found < factor,
                "{found} for {score}"
            );
        }
        assert_eq!(super::levels(&[0.0, 0.0]), (vec![0, 0], [0.0, 0.0]));
        assert_eq!(super::levels(&[2.0, 2.0]).0, [1, 1]);
        assert!(super::levels(&[]).0.is_empty());
    }

    #[test]
    fn nothing_in_a_string_ends_the_script() {
        let text = "</script><!--<script>\u{2028}\u{2029}\"'&\\";
        let json = inside_script(&serde_json::to_string(text).unwrap_or_default());
        assert!(!json.contains(['<', '\u{2028}', '\u{2029}']));
        assert_eq!(serde_json::from_str::<String>(&json).ok().as_deref(), Some(text));
    }
}
