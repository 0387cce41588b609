//! Reading a saved sequence: whatever the bytes are, a sequence that could have been saved or an error.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use reasoning_rpc_core::{Attention, Trigger};
use sha2::{Digest, Sha256};

use super::entries::{SavedEntries, what_stays};
use super::policy::{read_light_thinker, read_policy};
use super::{HASH_BYTES, Header, LONGEST_HEADER, MAGIC, ModelName, VERSION};
use crate::cache::QueryWindow;
use crate::compress::CompressionRecord;
use crate::engine::EngineShared;
use crate::error::{Error, Result};
use crate::sampling::{Sampler, SamplingOptions};
use crate::sequence::{DrawLog, Sequence, SequenceOptions, Stats, Text, position_of_generated};

/// Counters stay far from where sums overflow.
const LARGEST_COUNT: u64 = 1 << 53;

pub(super) fn refuse<T>(
    what: &str,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> Result<T> {
    Err(Error::State(format!(
        "{what}: expected {expected}, found {found}"
    )))
}

/// Errors of options name the option; here they mean that the blob is no good.
pub(super) fn damaged(error: impl std::fmt::Display) -> Error {
    Error::State(error.to_string())
}

/// Sections one after the other, each of a length that was checked in all.
pub(super) struct Sections<'a>(&'a [u8]);

impl<'a> Sections<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((part, rest)) = self.0.split_at_checked(len) else {
            return refuse("length", format!("{len} more bytes"), self.0.len());
        };
        self.0 = rest;
        Ok(part)
    }

    pub fn words(&mut self, count: usize) -> Result<impl Iterator<Item = u32> + use<'a>> {
        let bytes = self.take(count.checked_mul(4).ok_or_else(too_large)?)?;
        Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word)))
    }
}

pub(super) fn too_large() -> Error {
    Error::State("length: expected one that fits the model, found one beyond 64 bits".into())
}

pub(crate) fn restore(shared: &Arc<EngineShared>, bytes: &[u8]) -> Result<Sequence> {
    let (header, mut sections) = open(bytes)?;
    let expected = ModelName::of(shared);
    if header.model != expected {
        let name = |model: &ModelName| format!("{} {} {}", model.architecture, model.weights, model.digest);
        return refuse("model", name(&expected), name(&header.model));
    }
    let policy = match (&header.policy, &header.thoughts) {
        (Some(header), None) => read_policy(header)?,
        (None, Some(header)) => read_light_thinker(header, &mut sections)?,
        _ => return refuse("header", "one policy", "two or none"),
    };
    let spec = policy.spec();
    let per_kv_head = spec.per_kv_head;
    let (schedule, rolling) = match spec.trigger {
        Trigger::Interval(schedule) => (Some(schedule), None),
        Trigger::EveryToken(rolling) => (None, Some(rolling)),
        _ => (None, None),
    };
    let s = &header.sampling;
    let sampling = SamplingOptions {
        temperature: f32::from_bits(s.temperature),
        top_k: s.top_k,
        top_p: f32::from_bits(s.top_p),
        min_p: f32::from_bits(s.min_p),
        repetition_penalty: f32::from_bits(s.repetition_penalty),
        seed: 0,
    };

    // Lengths of all sections, before anything is allocated for them.
    let context = shared.context();
    let within = |what: &str, value: u64, most: usize| match usize::try_from(value) {
        Ok(value) if value <= most => Ok(value),
        _ => refuse(what, format!("at most {most}"), value),
    };
    let count = within("tokens", header.tokens, context)?;
    let ranges = within("given ranges", header.given, count)?;
    let written = within("written tokens", header.written, count)?;
    let tokens: Vec<u32> = sections.words(count)?.collect();
    let given = given_ranges(sections.words(2 * ranges)?, count)?;
    let drawn = sections.words(within("draws", header.drawn, count)?)?.collect();
    let seeds = seeds(sections.words(3 * within("seeds", header.seeds, count + 1)?)?);
    let Some(draws) = DrawLog::of(drawn, seeds, count) else {
        return refuse(
            "draws and seeds",
            format!("ascending positions up to {count}"),
            "others",
        );
    };
    let (seed, taken) = draws.state();
    let sampling = SamplingOptions { seed, ..sampling };
    let mut sampler = Sampler::resume(sampling, taken).map_err(damaged)?;
    let d = shared.model.manifest().dimensions;
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= d.vocab_size) {
        return refuse("token id", format!("one below {}", d.vocab_size), id);
    }
    let text = Text {
        policy: &*policy,
        tokens: &tokens,
        given: &given,
    };
    if !text.is_followed(context) {
        return refuse("tokens", "gists behind each thought", "others");
    }
    let gone = text.gone(written);
    let given_of = |end: usize| -> usize {
        let part = |range: &Range<u32>| (range.end as usize).min(end).saturating_sub(range.start as usize);
        given.iter().map(part).sum()
    };
    let given_written = given_of(written);
    let generated = written - given_written;
    let done = match (schedule, rolling) {
        (Some(schedule), _) => schedule.compressions(generated),
        (None, Some(rolling)) => rolling.evictions(generated),
        (None, None) => gone.len(),
    };
    let stays = what_stays(&gone, &given, written);
    let (recent, len) = match (schedule, done.checked_sub(1)) {
        (Some(schedule), Some(last)) => {
            let recent = schedule.due_at(last) - schedule.window();
            (recent, given_written + schedule.kept(last) + generated - recent)
        }
        (None, Some(_)) if rolling.is_some() => {
            let window = rolling.map_or(0, |rolling| rolling.window(generated));
            (generated - window, written - done)
        }
        _ => (0, stays.len()),
    };
    // Tokens that were written when the last entries went.
    let compressed_at = match (schedule, rolling, done.checked_sub(1)) {
        (Some(_), _, Some(_)) if spec.attention.is_some() => written,
        (Some(schedule), _, Some(last)) => {
            position_of_generated(&given, schedule.due_at(last) - 1) as usize + 1
        }
        // What the queries of all tokens have added up cannot be taken back.
        (_, Some(_), Some(_)) if spec.attention == Some(Attention::Sum) => written,
        (_, Some(rolling), Some(_)) => {
            let last = (1..=generated)
                .rev()
                .find(|&count| rolling.evictions(count) > rolling.evictions(count - 1));
            position_of_generated(&given, last.unwrap_or(1) - 1) as usize + 1
        }
        _ => gone.last().map_or(0, |gone| gone.gists_end),
    };

    // Beside a lack of budget, it refuses what the policy says of another model's vocabulary or flavour.
    let mut sequence = Sequence::new(
        Arc::clone(shared),
        SequenceOptions {
            policy,
            sampling,
            record_kept: header.record_kept,
        },
    )
    .map_err(|error| match error {
        Error::InvalidArgument(text) => Error::State(text),
        other => other,
    })?;
    let cache = sequence.cache.as_deref_mut().ok_or(Error::Poisoned)?;
    if header.cache != cache.element().name() {
        return refuse("cache type", cache.element().name(), &header.cache);
    }
    let shape = *cache.shape();
    let kept_sets = match (header.record_kept, per_kv_head) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => shape.kv_heads,
    };
    if rolling.is_none() {
        let compression = |index: usize| match schedule {
            Some(schedule) => (schedule.due_at(index), schedule.kept(index)),
            None => (gone[index].gists_end - given_of(gone[index].gists_end), 0),
        };
        let log = read_log(
            &mut sections,
            (0..done).map(compression),
            (shape.layers, kept_sets),
            spec.adaptive,
            written,
        )?;
        sequence.log = log;
    }
    let ready = count > 0 && written == count;
    if ready {
        sequence.logits = sections.words(d.vocab_size)?.map(f32::from_bits).collect();
        sequence.logits_ready = true;
    }
    for layer in 0..shape.layers {
        let window = cache.window_mut(layer);
        let words = sections.words(window.numbers())?;
        let rows: Vec<f32> = words.map(f32::from_bits).collect();
        check_floats("window queries", &rows)?;
        window.fill(&rows);
    }
    for layer in 0..shape.layers {
        read_frequencies(&mut sections, cache.window_mut(layer), shape.head_dim)?;
    }
    for layer in 0..shape.layers {
        read_floats(&mut sections, "moments", cache.window_mut(layer).moments_mut())?;
    }
    let lens = match spec.adaptive {
        false => vec![len; shape.layers * shape.kv_heads],
        true => read_lens(&mut sections, (shape.layers, shape.kv_heads), len)?,
    };
    let histories: Vec<Vec<f32>> = match cache.has_history() {
        true => lens
            .iter()
            .map(|&len| Ok(sections.words(len)?.map(f32::from_bits).collect()))
            .collect::<Result<_>>()?,
        false => Vec::new(),
    };
    histories
        .iter()
        .try_for_each(|history| check_floats("history", history))?;
    let entries = SavedEntries::take(&mut sections, lens, &shape)?;
    if !sections.0.is_empty() {
        return refuse("length", "the end", format!("{} more bytes", sections.0.len()));
    }
    let recent_from = position_of_generated(&given, recent);
    let unordered_until = match rolling {
        Some(_) => compressed_at,
        None => 0,
    };
    match spec.trigger {
        Trigger::Thought { .. } => entries.check_equal_positions(&stays)?,
        _ => entries.check_positions(
            &given,
            recent_from,
            (written, unordered_until),
            (shape.kv_heads, per_kv_head),
        )?,
    }
    if !entries.are_numbers(cache.element()) {
        return refuse("keys and values", "numbers", "infinity or NaN");
    }
    cache.unpack(&entries.lens, entries.bytes)?;
    cache.set_histories(histories);
    cache.raise_peak(within("peak bytes", header.peak_bytes, LARGEST_COUNT as usize)?);

    let counter = |what: &str, value: u64| within(what, value, LARGEST_COUNT as usize);
    sequence.stats = Stats {
        prefill_tokens: counter("prefill tokens", header.prefill_tokens)?,
        prefill_time: Duration::from_nanos(header.prefill_nanos),
        decode_tokens: counter("decode tokens", header.decode_tokens)?,
        decode_time: Duration::from_nanos(header.decode_nanos),
        compressions: done,
        compaction_time: Duration::from_nanos(header.compaction_nanos),
        ..Stats::default()
    };
    sampler.observe_all(&tokens);
    sequence.sampler = sampler;
    sequence.tokens = tokens;
    sequence.given = given;
    sequence.written = written;
    sequence.generated_written = generated;
    sequence.draws = draws;
    sequence.compressed_at = compressed_at;
    sequence.recall_thought();
    Ok(sequence)
}

/// The header and what follows it, the hash compared and taken off.
fn open(bytes: &[u8]) -> Result<(Header, Sections<'_>)> {
    let mut sections = Sections(bytes);
    let magic = sections.take(MAGIC.len())?;
    if magic != MAGIC {
        return refuse("beginning", "that of a saved sequence", "other bytes");
    }
    let mut numbers = sections.words(2)?;
    let (version, header_len) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0) as usize);
    if version != VERSION {
        return refuse("format version", VERSION, version);
    }
    if header_len > LONGEST_HEADER {
        return refuse("header", format!("at most {LONGEST_HEADER} bytes"), header_len);
    }
    let Some(end) = sections.0.len().checked_sub(HASH_BYTES) else {
        return refuse("length", "a hash at the end", "none");
    };
    let (body, hash) = sections.0.split_at(end);
    let (hashed, _) = bytes.split_at(bytes.len() - HASH_BYTES);
    if Sha256::digest(hashed).as_slice() != hash {
        return refuse(
            "SHA-256",
            "that of the bytes",
            "another: the bytes are damaged or cut off",
        );
    }
    let mut sections = Sections(body);
    let header = serde_json::from_slice(sections.take(header_len)?)
        .map_err(|error| Error::State(format!("header: {error}")))?;
    Ok((header, sections))
}

fn seeds(mut words: impl Iterator<Item = u32>) -> Vec<(u32, u64)> {
    let mut seeds = Vec::new();
    while let (Some(from), Some(low), Some(high)) = (words.next(), words.next(), words.next()) {
        seeds.push((from, u64::from(high) << 32 | u64::from(low)));
    }
    seeds
}

fn read_floats(sections: &mut Sections<'_>, what: &str, out: &mut [f32]) -> Result<()> {
    let words = sections.words(out.len())?;
    for (place, word) in out.iter_mut().zip(words) {
        *place = f32::from_bits(word);
    }
    check_floats(what, out)
}

fn check_floats(what: &str, found: &[f32]) -> Result<()> {
    match found.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => refuse(what, "numbers", "infinity or NaN"),
    }
}

fn read_frequencies(sections: &mut Sections<'_>, window: &mut QueryWindow, head_dim: usize) -> Result<()> {
    let count = sections.words(1)?.next().unwrap_or(0) as usize;
    if count != 0 && (count != head_dim / 2 || window.tokens() == 0) {
        return refuse("frequencies of the rotation", head_dim / 2, count);
    }
    let frequencies: Vec<f32> = sections.words(count)?.map(f32::from_bits).collect();
    check_floats("frequencies of the rotation", &frequencies)?;
    window.set_frequencies(&frequencies);
    Ok(())
}

fn given_ranges(mut words: impl Iterator<Item = u32>, tokens: usize) -> Result<Vec<Range<u32>>> {
    let mut given: Vec<Range<u32>> = Vec::new();
    while let (Some(start), Some(end)) = (words.next(), words.next()) {
        let apart = given.last().is_none_or(|before| before.end < start);
        if !apart || end <= start || end as usize > tokens {
            return refuse(
                "given ranges",
                format!("ascending ones, apart, up to {tokens}"),
                format!("{start}..{end}"),
            );
        }
        given.push(start..end);
    }
    match given.first() {
        // A text begins with what was given.
        Some(first) if first.start == 0 => Ok(given),
        None if tokens == 0 => Ok(given),
        _ => refuse("given ranges", "one from token 0", "none"),
    }
}

/// Of each layer and KV head, how many entries there are; of a layer at most as if each head had `len`.
fn read_lens(
    sections: &mut Sections<'_>,
    (layers, kv_heads): (usize, usize),
    len: usize,
) -> Result<Vec<usize>> {
    let lens: Vec<usize> = sections
        .words(layers * kv_heads)?
        .map(|len| len as usize)
        .collect();
    let most = kv_heads.checked_mul(len).ok_or_else(too_large)?;
    match lens
        .chunks_exact(kv_heads)
        .map(|layer| layer.iter().sum::<usize>())
        .find(|&sum| sum > most)
    {
        Some(sum) => refuse("entries of a layer", format!("at most {most}"), sum),
        None => Ok(lens),
    }
}

/// `compressions`: of each, how many generated tokens were written, and how many candidates stayed.
fn read_log(
    sections: &mut Sections<'_>,
    compressions: impl Iterator<Item = (usize, usize)>,
    (layers, kept_sets): (usize, usize),
    adaptive: bool,
    written: usize,
) -> Result<Vec<CompressionRecord>> {
    let mut log = Vec::new();
    for ((at_token, candidates_kept), layer) in
        compressions.flat_map(|compression| (0..layers).map(move |layer| (compression, layer)))
    {
        let mut lengths = sections.words(2)?.map(|length| length as usize);
        let (len_before, len_after) = (lengths.next().unwrap_or(0), lengths.next().unwrap_or(0));
        if len_after > len_before || len_before > written {
            return refuse(
                "log of compressions",
                format!("lengths that shrink, up to {written}"),
                format!("{len_before} and {len_after}"),
            );
        }
        let mut kept = Vec::new();
        let counts = match adaptive && kept_sets > 0 {
            false => vec![candidates_kept; kept_sets],
            true => read_lens(sections, (1, kept_sets), candidates_kept)?,
        };
        for count in counts {
            let set: Vec<u32> = sections.words(count)?.collect();
            let ascending = set.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || set.last().is_some_and(|&last| last as usize >= written) {
                return refuse("log of compressions", "ascending positions of the text", "others");
            }
            kept.push(set);
        }
        log.push(CompressionRecord {
            at_token,
            layer,
            len_before,
            len_after,
            kept,
            candidates: Vec::new(),
        });
    }
    Ok(log)
}
