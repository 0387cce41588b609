//! Saved sequences. All numbers are little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `RRPCSEQ` and a zero |
//! | 4 | version of the format, u32 |
//! | 4 | bytes of the header, u32 |
//! | ... | header, JSON ([`Header`]) |
//! | 4 each | of lightthinker: ids that end thoughts, then those that take a thought's place |
//! | 4 each | token ids |
//! | 8 each | given ranges: start, end |
//! | 4 each | positions of the tokens that took a draw |
//! | 12 each | seeds: where each begins (u32), the seed (u64) |
//! | ... | log: per compression and layer the lengths before and after (u32 each), with adaptive KV heads how long each kept set is (u32 each), then the kept sets |
//! | 4 each | logits after the last token, if no token is pending and there is one |
//! | 4 each | window queries of every layer, as the rings lie |
//! | ... | per layer: how many frequencies they are rotated with (0 or half of head_dim, u32), the frequencies |
//! | 4 each | per layer: the moments of the queries, if the policy wants them |
//! | 4 each | with adaptive KV heads: per layer and KV head how many entries it has |
//! | 4 each | per layer and KV head: the policy's float of each entry, if it keeps any |
//! | ... | per layer and KV head: keys, values (elements of the cache type), with int8 the scales of keys and of values (f32), positions (u32) |
//! | 32 | SHA-256 of all before |
//!
//! Every size follows from the header and the model, so that a blob is refused before anything is
//! allocated for it.

mod entries;
mod policy;
mod restore;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use policy::{PolicyHeader, ThoughtsHeader, light_thinker, policy_header, thoughts_header};
pub(crate) use restore::restore;

use crate::engine::EngineShared;
use crate::error::{Error, Result};
use crate::sampling::SamplingOptions;
use crate::sequence::Sequence;

const MAGIC: [u8; 8] = *b"RRPCSEQ\0";
const VERSION: u32 = 6;
const HASH_BYTES: usize = 32;
const LONGEST_HEADER: usize = 1 << 14;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    model: ModelName,
    cache: String,
    /// One of the two.
    policy: Option<PolicyHeader>,
    thoughts: Option<ThoughtsHeader>,
    sampling: SamplingHeader,
    record_kept: bool,
    tokens: u64,
    given: u64,
    drawn: u64,
    seeds: u64,
    written: u64,
    prefill_tokens: u64,
    prefill_nanos: u64,
    decode_tokens: u64,
    decode_nanos: u64,
    compaction_nanos: u64,
    peak_bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelName {
    architecture: String,
    weights: String,
    digest: String,
}

/// Floats as their bits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SamplingHeader {
    temperature: u32,
    top_k: u32,
    top_p: u32,
    min_p: u32,
    repetition_penalty: u32,
}

impl ModelName {
    fn of(shared: &EngineShared) -> Self {
        let manifest = shared.model.manifest();
        Self {
            architecture: manifest.architecture.clone(),
            weights: manifest.weights.clone(),
            digest: manifest.digest(),
        }
    }
}

fn sampling_header(options: &SamplingOptions) -> SamplingHeader {
    SamplingHeader {
        temperature: options.temperature.to_bits(),
        top_k: options.top_k,
        top_p: options.top_p.to_bits(),
        min_p: options.min_p.to_bits(),
        repetition_penalty: options.repetition_penalty.to_bits(),
    }
}

impl Sequence {
    /// Bytes that [`save`](Self::save) writes, exactly.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn saved_size(&self) -> Result<usize> {
        let mut counter = Counting(0);
        self.sections(&mut counter).map_err(internal)??;
        Ok(counter.0 + HASH_BYTES)
    }

    /// Writes all that the sequence is, to be read by [`Engine::restore`](crate::Engine::restore).
    ///
    /// # Errors
    /// [`Error::Poisoned`]; [`Error::InvalidArgument`] for a policy that is not one of
    /// [`PolicyKind`](reasoning_rpc_core::PolicyKind) or [`LightThinker`](reasoning_rpc_core::LightThinker);
    /// [`Error::File`] if `out` fails.
    pub fn save(&self, out: &mut dyn Write) -> Result<()> {
        let failed = |error: io::Error| Error::File(format!("a sequence cannot be written: {error}"));
        let mut out = Hashing {
            out,
            hasher: Sha256::new(),
        };
        self.sections(&mut out).map_err(failed)??;
        let hash = out.hasher.finalize();
        out.out.write_all(&hash).map_err(failed)
    }

    /// Saves to a file: written beside it under another name, flushed to the disk, then renamed, so
    /// that a file is whole or as it was.
    ///
    /// # Errors
    /// As [`save`](Self::save), and [`Error::File`] naming the path.
    pub fn save_file(&self, path: &Path) -> Result<()> {
        let failed = |error: io::Error| Error::File(format!("{}: {error}", path.display()));
        let temporary = beside(path).map_err(failed)?;
        let result = (|| {
            let file = File::options()
                .write(true)
                .create_new(true)
                .open(&temporary)
                .map_err(failed)?;
            let mut out = BufWriter::with_capacity(1 << 20, file);
            self.save(&mut out).map_err(|error| match error {
                Error::File(text) => Error::File(format!("{}: {text}", path.display())),
                other => other,
            })?;
            let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
            file.sync_all().map_err(failed)?;
            fs::rename(&temporary, path).map_err(failed)
        })();
        if result.is_err() {
            // It may not be there; the first error is the one to tell.
            let _ = fs::remove_file(&temporary);
        } else if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            // The rename survives a power cut where the file system lets a folder be flushed.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        result
    }

    fn header(&self) -> Result<Header> {
        self.check_alive()?;
        let cache = self.cache.as_ref().ok_or(Error::Poisoned)?;
        let thoughts = light_thinker(&*self.policy).map(thoughts_header);
        Ok(Header {
            model: ModelName::of(&self.shared),
            cache: cache.element().name().into(),
            policy: match thoughts {
                Some(_) => None,
                None => Some(policy_header(&*self.policy)?),
            },
            thoughts,
            sampling: sampling_header(self.sampler.options()),
            record_kept: self.record_kept,
            tokens: self.tokens.len() as u64,
            given: self.given.len() as u64,
            drawn: self.draws.parts().0.len() as u64,
            seeds: self.draws.parts().1.len() as u64,
            written: self.written as u64,
            prefill_tokens: self.stats.prefill_tokens as u64,
            prefill_nanos: self.stats.prefill_time.as_nanos() as u64,
            decode_tokens: self.stats.decode_tokens as u64,
            decode_nanos: self.stats.decode_time.as_nanos() as u64,
            compaction_nanos: self.stats.compaction_time.as_nanos() as u64,
            peak_bytes: cache.peak_bytes() as u64,
        })
    }

    /// All but the hash.
    fn sections(&self, out: &mut dyn Write) -> io::Result<Result<()>> {
        let header = match self.header().and_then(|header| {
            serde_json::to_vec(&header).map_err(|error| Error::Internal(error.to_string()))
        }) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(header.len() as u32).to_le_bytes())?;
        out.write_all(&header)?;
        if let Some(policy) = light_thinker(&*self.policy) {
            words(out, policy.delimiters().iter().chain(policy.gists()).copied())?;
        }
        words(out, self.tokens.iter().copied())?;
        words(out, self.given.iter().flat_map(|range| [range.start, range.end]))?;
        let (drawn, seeds) = self.draws.parts();
        words(out, drawn.iter().copied())?;
        words(
            out,
            seeds
                .iter()
                .flat_map(|&(from, seed)| [from, seed as u32, (seed >> 32) as u32]),
        )?;
        let adaptive = self.policy.spec().adaptive;
        for record in &self.log {
            words(out, [record.len_before as u32, record.len_after as u32])?;
            if adaptive {
                words(out, record.kept.iter().map(|set| set.len() as u32))?;
            }
            for set in &record.kept {
                words(out, set.iter().copied())?;
            }
        }
        words(out, self.logits().unwrap_or_default().iter().map(|x| x.to_bits()))?;
        let Some(cache) = &self.cache else {
            return Ok(Err(Error::Poisoned));
        };
        let shape = *cache.shape();
        for layer in 0..shape.layers {
            words(out, cache.window(layer).rows().iter().map(|x| x.to_bits()))?;
        }
        for layer in 0..shape.layers {
            let frequencies = cache.window(layer).frequencies();
            words(out, [frequencies.len() as u32])?;
            words(out, frequencies.iter().map(|x| x.to_bits()))?;
        }
        for layer in 0..shape.layers {
            words(out, cache.window(layer).moments().iter().map(|x| x.to_bits()))?;
        }
        let heads = || (0..shape.layers).flat_map(|l| (0..shape.kv_heads).map(move |h| (l, h)));
        if adaptive {
            words(
                out,
                heads().map(|(layer, kv_head)| cache.head(layer, kv_head).len() as u32),
            )?;
        }
        for (layer, kv_head) in heads() {
            let history = cache.head(layer, kv_head).history();
            words(out, history.iter().map(|x| x.to_bits()))?;
        }
        for (layer, kv_head) in heads() {
            for part in cache.packed(layer, kv_head) {
                out.write_all(part)?;
            }
        }
        Ok(Ok(()))
    }
}

/// The bytes of a saved sequence.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: io::Error| Error::File(format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let size = (file.metadata().map_err(failed)?.len() as usize).saturating_sub(MAGIC.len());
    // Another file may be larger than the memory.
    let mut magic = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(&mut file, MAGIC.len() as u64), &mut magic).map_err(failed)?;
    if magic != MAGIC {
        return Err(Error::State(format!(
            "{}: expected a saved sequence, found other bytes",
            path.display()
        )));
    }
    let mut bytes = magic;
    bytes
        .try_reserve_exact(size)
        .map_err(|_| Error::File(format!("{}: no memory for {size} bytes", path.display())))?;
    io::Read::read_to_end(&mut io::Read::take(&mut file, size as u64), &mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a file"))?;
    let mut temporary = name.to_os_string();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{number}.tmp", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn internal(error: io::Error) -> Error {
    Error::Internal(error.to_string())
}

fn words(out: &mut dyn Write, values: impl IntoIterator<Item = u32>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut used = 0;
    for value in values {
        buffer[used..used + 4].copy_from_slice(&value.to_le_bytes());
        used += 4;
        if used == buffer.len() {
            out.write_all(&buffer)?;
            used = 0;
        }
    }
    out.write_all(&buffer[..used])
}

struct Counting(usize);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Hashing<'a> {
    out: &'a mut dyn Write,
    hasher: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
