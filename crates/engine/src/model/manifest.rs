//! manifest.json: what the exporter wrote, and whether the folder still holds it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use reasoning_rpc_core::PolicyKind;

use super::GRAPH_FILE;
use crate::error::{Error, Result};
use crate::sampling::GenerationDefaults;

const FORMAT: &str = "reasoning-rpc-model";
/// Versions of the graph contract that this library runs.
const GRAPH_CONTRACTS: std::ops::RangeInclusive<u64> = 1..=2;
/// Files whose hash is compared even when the weights' is not.
const SMALL_FILE: u64 = 64 << 20;

/// manifest.json of a model folder.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    format: String,
    graph_contract: u64,
    /// Which runner the graph is for.
    pub flavour: Flavour,
    /// Weight encoding: fp32, int8 or int4.
    pub weights: String,
    /// Family of the architecture.
    pub architecture: String,
    /// Dimensions of the decoder.
    pub dimensions: Dimensions,
    /// Special tokens by role.
    pub tokens: Tokens,
    /// Sampling defaults of the model's authors.
    #[serde(default)]
    pub generation: GenerationDefaults,
    files: BTreeMap<String, FileEntry>,
}

/// How the graph handles its KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// `reasoning_rpc::CachedAttention` nodes over the engine's block pool.
    Cached,
    /// Stock operators over one contiguous float32 cache per sequence.
    Portable,
}

impl Flavour {
    /// The policy of users who name none: the one that loses least (docs/accuracy.md) or, where it cannot run, the
    /// published one.
    pub fn default_policy(self) -> PolicyKind {
        match self {
            Self::Cached => PolicyKind::LookaheadMerge,
            Self::Portable => PolicyKind::Rpc,
        }
    }
}

/// Dimensions of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Dimensions {
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// KV heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// The context in tokens.
    pub max_positions: usize,
    /// Parameters in all.
    pub parameters: u64,
}

/// Special tokens by role.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Tokens {
    /// Beginning of the text, if there is one.
    pub bos: Option<u32>,
    /// End of a text, as chat templates name it, if there is one.
    #[serde(default)]
    pub eos: Option<u32>,
    /// Whether a raw prompt starts with the beginning-of-text token.
    pub add_bos: bool,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
struct FileEntry {
    size: u64,
    sha256: String,
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        // The version first: another version may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format: String,
            graph_contract: u64,
        }
        let describe = |error: serde_json::Error| Error::Model(format!("manifest.json: {error}"));
        let version: Version = serde_json::from_slice(bytes).map_err(describe)?;
        if version.format != FORMAT {
            return Err(Error::Model(format!(
                "manifest.json: expected format {FORMAT:?}, found {:?}",
                version.format
            )));
        }
        if !GRAPH_CONTRACTS.contains(&version.graph_contract) {
            return Err(Error::Model(format!(
                "manifest.json: expected graph contract version {} to {}, found {}; export the model again",
                GRAPH_CONTRACTS.start(),
                GRAPH_CONTRACTS.end(),
                version.graph_contract
            )));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(describe)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        debug_assert!(self.format == FORMAT && GRAPH_CONTRACTS.contains(&self.graph_contract));
        let d = &self.dimensions;
        let bounds = [
            ("num_layers", d.num_layers, 1 << 10),
            ("num_heads", d.num_heads, 1 << 12),
            ("num_kv_heads", d.num_kv_heads, 1 << 12),
            ("head_dim", d.head_dim, 256),
            ("hidden_size", d.hidden_size, 1 << 20),
            ("vocab_size", d.vocab_size, 1 << 24),
            ("max_positions", d.max_positions, 1 << 24),
        ];
        for (name, found, most) in bounds {
            if found == 0 || found > most {
                return Err(Error::Model(format!(
                    "manifest.json: {name}: expected 1 to {most}, found {found}"
                )));
            }
        }
        if !d.num_heads.is_multiple_of(d.num_kv_heads) {
            return Err(Error::Model(format!(
                "manifest.json: num_heads: expected a multiple of num_kv_heads {}, found {}",
                d.num_kv_heads, d.num_heads
            )));
        }
        if !d.head_dim.is_multiple_of(8) {
            return Err(Error::Model(format!(
                "manifest.json: head_dim: expected a multiple of 8, found {}",
                d.head_dim
            )));
        }
        for &token in self
            .tokens
            .stop
            .iter()
            .chain(&self.tokens.bos)
            .chain(&self.tokens.eos)
        {
            if token as usize >= d.vocab_size {
                return Err(Error::Model(format!(
                    "manifest.json: tokens: expected ids below the vocabulary's {}, found {token}",
                    d.vocab_size
                )));
            }
        }
        if !self.has_file(GRAPH_FILE) {
            return Err(Error::Model(format!(
                "manifest.json: files: expected {GRAPH_FILE}, found {:?}",
                self.files.keys().collect::<Vec<_>>()
            )));
        }
        for name in self.files.keys() {
            let mut parts = Path::new(name).components();
            let plain = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            if !plain {
                return Err(Error::Model(format!(
                    "manifest.json: files: expected plain file names, found {name:?}"
                )));
            }
        }
        Ok(())
    }

    /// Whether the manifest lists a file.
    pub(crate) fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// What a cache depends on, as one SHA-256: the graph, the weights and the dimensions.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(format!("{:?} {:?}\n", self.flavour, self.dimensions));
        // The same cache serves with another tokenizer or template.
        for (name, file) in &self.files {
            if name != super::TOKENIZER_FILE && name != super::TEMPLATE_FILE {
                hasher.update(format!(
                    "{name:?} {} {}\n",
                    file.size,
                    file.sha256.to_ascii_lowercase()
                ));
            }
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The size of a listed file in bytes.
    pub(super) fn file_size(&self, name: &str) -> Option<u64> {
        self.files.get(name).map(|entry| entry.size)
    }

    /// Bytes of all listed files.
    pub fn total_bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.size).sum()
    }

    pub(super) fn check_files(&self, folder: &Path, verify_all: bool) -> Result<()> {
        for (name, expected) in &self.files {
            let path = folder.join(name);
            let describe = |error: std::io::Error| Error::Model(format!("{}: {error}", path.display()));
            let resolved = fs::canonicalize(&path).map_err(describe)?;
            if !resolved.starts_with(folder) {
                return Err(Error::Model(format!(
                    "{name}: expected a file inside the model folder, found a link to {}",
                    resolved.display()
                )));
            }
            let found = super::file_size(&path)?;
            if found != expected.size {
                return Err(Error::Model(format!(
                    "{name}: expected {} bytes, found {found}: truncated or not of this export",
                    expected.size
                )));
            }
            if verify_all || found <= SMALL_FILE {
                let digest = sha256_of(&path).map_err(describe)?;
                if !digest.eq_ignore_ascii_case(&expected.sha256) {
                    return Err(Error::Model(format!(
                        "{name}: expected sha256 {}, found {digest}: edited or damaged",
                        expected.sha256
                    )));
                }
            }
        }
        Ok(())
    }
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_it_expects() {
        let text = serde_json::json!({
            "format": "reasoning-rpc-model", "graph_contract": 1, "flavour": "cached", "weights": "fp32",
            "architecture": "llama",
            "dimensions": {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden_size": 16,
                "vocab_size": 10, "max_positions": 100, "parameters": 1},
            "tokens": {"bos": null, "add_bos": false, "stop": []},
            "files": {"model.onnx": {"size": 1, "sha256": ""}},
        });
        let refused = |pointer: &str, value: serde_json::Value| {
            let mut changed = text.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            Manifest::parse(changed.to_string().as_bytes())
                .unwrap_err()
                .to_string()
        };
        for (pointer, value, expected) in [
            (
                "/graph_contract",
                3.into(),
                "expected graph contract version 1 to 2, found 3",
            ),
            ("/format", "gguf".into(), "found \"gguf\""),
            ("/dimensions/num_heads", 0.into(), "num_heads: expected 1 to"),
            ("/dimensions/head_dim", 12.into(), "a multiple of 8, found 12"),
            (
                "/dimensions/num_kv_heads",
                3.into(),
                "a multiple of num_kv_heads 3, found 2",
            ),
            ("/dimensions/vocab_size", serde_json::json!(-1), "invalid value"),
            (
                "/tokens/stop",
                serde_json::json!([10]),
                "below the vocabulary's 10, found 10",
            ),
            ("/flavour", "fast".into(), "unknown variant `fast`"),
            (
                "/files",
                serde_json::json!({"../x": {"size": 1, "sha256": ""}, "model.onnx": {"size": 1, "sha256": ""}}),
                "found \"../x\"",
            ),
            ("/files", serde_json::json!({}), "expected model.onnx"),
        ] {
            let error = refused(pointer, value);
            assert!(error.contains(expected), "{error} for {expected}");
        }
        assert!(Manifest::parse(b"{").is_err());
    }
}
