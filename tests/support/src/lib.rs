//! What the tests of several rooms share: golden data, exported models, seeds.
//!
//! Everything here panics when something is missing: a test that cannot read its data has failed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::Value;

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the project's root")
}

/// A path in the golden data: under `RRPC_GOLDEN` if set, else in tests/golden.
pub fn golden(path: &str) -> PathBuf {
    let folder = std::env::var_os("RRPC_GOLDEN").map_or_else(|| root().join("tests/golden"), PathBuf::from);
    let path = folder.join(path);
    assert!(path.exists(), "golden data is missing: {}", path.display());
    path
}

/// An exported model of `make test-models`: under `RRPC_MODELS` if set, else in models/.
pub fn model(name: &str) -> PathBuf {
    let folder = std::env::var_os("RRPC_MODELS").map_or_else(|| root().join("models"), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.join("manifest.json").exists(),
        "{} is missing: run `make test-models`",
        path.display()
    );
    path
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A JSON array of non-negative integers.
pub fn integers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("an array")
        .iter()
        .map(|item| item.as_u64().expect("an integer") as u32)
        .collect()
}

/// A seed: `SEED` if set, else from the clock; printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED is an integer"),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos() as u64 % 1_000_000_000),
    };
    eprintln!("SEED={seed}");
    seed
}

/// Checks a property on fresh inputs each run; `SEED=` replays them. The inputs shrink on a failure.
pub fn property<S: Strategy>(inputs: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    if let Err(error) = TestRunner::new_with_rng(config, random).run(&inputs, test) {
        panic!("{error}");
    }
}

/// Pseudo-random numbers for test inputs (splitmix64).
pub struct Random(u64);

impl Random {
    /// A generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// A number in -1..1.
    pub fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A safetensors file with its metadata.
pub struct Tensors {
    /// The header's metadata.
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

/// One tensor of a [`Tensors`] file.
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    dtype: String,
    bytes: Vec<u8>,
}

impl Tensors {
    /// Reads a file.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (length, rest) = bytes.split_first_chunk::<8>().expect("a header length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("a JSON header");
        let mut file = Self {
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        for (name, entry) in header {
            if name == "__metadata__" {
                let items = entry.as_object().expect("an object");
                file.metadata = items
                    .iter()
                    .map(|(k, v)| (k.clone(), v.as_str().expect("text").into()))
                    .collect();
                continue;
            }
            let offsets = integers(&entry["data_offsets"]);
            let tensor = Tensor {
                shape: integers(&entry["shape"])
                    .into_iter()
                    .map(|n| n as usize)
                    .collect(),
                dtype: entry["dtype"].as_str().expect("a dtype").into(),
                bytes: data[offsets[0] as usize..offsets[1] as usize].to_vec(),
            };
            file.tensors.insert(name, tensor);
        }
        file
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

impl Tensor {
    /// The elements as float32 (F32 and BF16).
    pub fn f32(&self) -> Vec<f32> {
        match self.dtype.as_str() {
            "F32" => self.words(f32::from_le_bytes),
            "BF16" => self.words(|bytes| bf16::from_le_bytes(bytes).to_f32()),
            other => panic!("not a float tensor: {other}"),
        }
    }

    /// The elements as integers (I64).
    pub fn i64(&self) -> Vec<i64> {
        assert_eq!(self.dtype, "I64");
        self.words(i64::from_le_bytes)
    }

    fn words<const N: usize, T>(&self, convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|bytes| convert(*bytes))
            .collect()
    }
}
