//! A host: sequences whose entries lie in memory of one of three layouts.
#![allow(dead_code)]

use std::ffi::c_void;

use reasoning_rpc_compressor::*;
use reasoning_rpc_core::RpcOptions;
use reasoning_rpc_test_support::Random;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Dense,
    HeadMajor,
    TokenMajor,
}

pub const PLACES: [Place; 3] = [Place::Dense, Place::HeadMajor, Place::TokenMajor];

#[derive(Clone)]
pub struct Host {
    pub place: Place,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dtype: Dtype,
    pub block_entries: usize,
    pub block_count: usize,
    pub columns: usize,
    /// Keys, values.
    pub data: [Vec<u32>; 2],
    pub scales: [Vec<f32>; 2],
    /// Zeros at first.
    pub all_history: Vec<f32>,
    pub table: Vec<i32>,
    pub shared: Vec<i32>,
    pub spare: Vec<i32>,
    pub lengths: Vec<i32>,
    pub prompts: Vec<i32>,
    pub done: Vec<i32>,
}

impl Host {
    /// Random bytes everywhere; blocks of the tables are shuffled, `spare` more are free.
    pub fn new(
        place: Place,
        (kv_heads, head_dim, dtype): (usize, usize, Dtype),
        sequences: &[[i32; 3]],
        random: &mut Random,
    ) -> Host {
        let lengths: Vec<i32> = sequences.iter().map(|s| s[0]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(1).max(1) as usize;
        let (block_entries, columns) = match place {
            Place::Dense => (longest + 3, 1),
            _ => {
                let entries = 1 + random.below(9);
                (entries, longest.div_ceil(entries) + 1)
            }
        };
        let used = columns * lengths.len();
        let spare = if place == Place::Dense { 0 } else { used };
        let block_count = used + spare;
        let mut ids: Vec<i32> = (0..block_count as i32).collect();
        if place != Place::Dense {
            for i in (1..ids.len()).rev() {
                ids.swap(i, random.below(i + 1));
            }
        }
        let numbers = block_count * block_entries * kv_heads;
        let words = (numbers * head_dim * dtype.size()).div_ceil(4);
        let mut bytes = || (0..words).map(|_| random.bits() as u32).collect::<Vec<_>>();
        let data = [bytes(), bytes()];
        let mut scales = || (0..numbers).map(|_| random.number() / 64.0).collect::<Vec<_>>();
        Host {
            place,
            kv_heads,
            head_dim,
            dtype,
            block_entries,
            block_count,
            columns,
            data,
            scales: [scales(), scales()],
            all_history: vec![0.0; numbers],
            table: ids[..used].to_vec(),
            shared: vec![],
            spare: ids[used..].to_vec(),
            prompts: sequences.iter().map(|s| s[1]).collect(),
            done: sequences.iter().map(|s| s[2]).collect(),
            lengths,
        }
    }

    fn strides(&self, width: usize) -> [i64; 3] {
        let (heads, entries) = (self.kv_heads, self.block_entries);
        let strides = match self.place {
            Place::TokenMajor => [entries * heads * width, width, heads * width],
            _ => [entries * heads * width, entries * width, width],
        };
        strides.map(|stride| stride as i64)
    }

    pub fn layer(&mut self, layer: u32) -> Layer {
        let (strides, scale_strides) = (self.strides(self.head_dim), self.strides(1));
        let [keys, values] = &mut self.data;
        let [key_scales, value_scales] = &mut self.scales;
        let history = self.all_history.as_mut_ptr();
        let tensor = |data: *mut c_void, strides| Tensor { data, strides };
        Layer {
            layer,
            keys: tensor(keys.as_mut_ptr().cast(), strides),
            values: tensor(values.as_mut_ptr().cast(), strides),
            scales: (self.dtype == Dtype::I8).then_some([
                tensor(key_scales.as_mut_ptr().cast(), scale_strides),
                tensor(value_scales.as_mut_ptr().cast(), scale_strides),
            ]),
            history: Some(tensor(history.cast(), scale_strides)),
        }
    }

    pub fn batch(&self) -> Batch<'_> {
        let paged = self.place != Place::Dense;
        Batch {
            lengths: &self.lengths,
            prompt_lengths: &self.prompts,
            compressions: &self.done,
            rows: None,
            block_table: paged.then_some(BlockTable {
                ids: self.table.as_ptr(),
                stride: self.columns as i64,
            }),
            shared_blocks: &self.shared,
            spare_blocks: if paged { &self.spare } else { &[] },
            row_count: self.lengths.len() as u32,
            block_entries: self.block_entries as u32,
            block_count: if paged { self.block_count as u32 } else { 0 },
        }
    }

    /// Element of an entry's first number: within the tensor, and of its scale.
    fn at(&self, sequence: usize, kv_head: usize, entry: usize) -> (usize, usize) {
        let block = match self.place {
            Place::Dense => sequence,
            _ => self.table[sequence * self.columns + entry / self.block_entries] as usize,
        };
        let index = |strides: [i64; 3]| {
            block * strides[0] as usize
                + kv_head * strides[1] as usize
                + entry % self.block_entries * strides[2] as usize
        };
        (index(self.strides(self.head_dim)), index(self.strides(1)))
    }

    fn bytes(&self, part: usize) -> &[u8] {
        // SAFETY: any u32 is four bytes.
        unsafe { std::slice::from_raw_parts(self.data[part].as_ptr().cast(), self.data[part].len() * 4) }
    }

    pub fn set(&mut self, part: usize, [sequence, kv_head, entry]: [usize; 3], bytes: &[u8], scale: f32) {
        let (at, scale_at) = self.at(sequence, kv_head, entry);
        let at = at * self.dtype.size();
        self.scales[part][scale_at] = scale;
        let data = &mut self.data[part];
        // SAFETY: any u32 is four bytes.
        let all: &mut [u8] =
            unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len() * 4) };
        all[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Bytes and scale (of int8) of an entry.
    pub fn get(&self, part: usize, [sequence, kv_head, entry]: [usize; 3]) -> (Vec<u8>, f32) {
        let (at, scale_at) = self.at(sequence, kv_head, entry);
        let size = self.dtype.size();
        let scale = if self.dtype == Dtype::I8 {
            self.scales[part][scale_at]
        } else {
            1.0
        };
        (
            self.bytes(part)[at * size..(at + self.head_dim) * size].to_vec(),
            scale,
        )
    }

    pub fn set_history(&mut self, [sequence, kv_head, entry]: [usize; 3], value: f32) {
        let (_, at) = self.at(sequence, kv_head, entry);
        self.all_history[at] = value;
    }

    pub fn history(&self, [sequence, kv_head, entry]: [usize; 3]) -> f32 {
        self.all_history[self.at(sequence, kv_head, entry).1]
    }

    /// Those of all valid entries of a KV head of a sequence.
    pub fn histories(&self, sequence: usize, kv_head: usize) -> Vec<f32> {
        (0..self.lengths[sequence] as usize)
            .map(|entry| self.history([sequence, kv_head, entry]))
            .collect()
    }

    /// All bytes of a block, in both parts.
    pub fn block(&self, id: i32) -> Vec<u8> {
        let size = self.kv_heads * self.block_entries * self.head_dim * self.dtype.size();
        (0..2)
            .flat_map(|part| self.bytes(part)[id as usize * size..][..size].to_vec())
            .collect()
    }

    /// All valid entries of a KV head of a sequence.
    pub fn entries(&self, sequence: usize, kv_head: usize) -> Vec<[(Vec<u8>, f32); 2]> {
        (0..self.lengths[sequence] as usize)
            .map(|entry| [0, 1].map(|part| self.get(part, [sequence, kv_head, entry])))
            .collect()
    }

    /// Random finite numbers in every valid entry.
    pub fn fill(&mut self, random: &mut Random) {
        for sequence in 0..self.lengths.len() {
            for entry in 0..self.lengths[sequence] as usize {
                for kv_head in 0..self.kv_heads {
                    for part in 0..2 {
                        let bytes: Vec<u8> = (0..self.head_dim)
                            .flat_map(|_| bytes_of(self.dtype, random.number()))
                            .collect();
                        let scale = (0.5 + random.number().abs()) / 127.0;
                        self.set(part, [sequence, kv_head, entry], &bytes, scale);
                    }
                }
            }
        }
    }

    /// The same sequences elsewhere.
    pub fn copy_to(&self, other: &mut Host) {
        for sequence in 0..self.lengths.len() {
            for kv_head in 0..self.kv_heads {
                for entry in 0..self.lengths[sequence] as usize {
                    for part in 0..2 {
                        let (bytes, scale) = self.get(part, [sequence, kv_head, entry]);
                        other.set(part, [sequence, kv_head, entry], &bytes, scale);
                    }
                }
            }
        }
    }

    /// What a host does after a compression.
    pub fn adopt(&mut self, plan: &Plan<'_>) {
        for copy in plan.copies {
            let slot = &mut self.table[copy.sequence as usize * self.columns + copy.index as usize];
            assert_eq!(*slot, copy.from);
            *slot = copy.to;
        }
        self.lengths = plan.new_lengths.to_vec();
    }
}

pub fn bytes_of(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::I8 => vec![(value * 127.0) as i8 as u8],
    }
}

/// Numbers of an entry as [`Host::get`] gives it.
pub fn numbers(dtype: Dtype, (bytes, scale): &(Vec<u8>, f32)) -> Vec<f32> {
    bytes
        .chunks(dtype.size())
        .map(|b| match dtype {
            Dtype::F32 => f32::from_le_bytes(b.try_into().unwrap()),
            Dtype::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            Dtype::Bf16 => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            Dtype::I8 => f32::from(b[0] as i8) * scale,
        })
        .collect()
}

pub fn options(heads: usize, kv_heads: usize, head_dim: usize, dtype: Dtype, rpc: RpcOptions) -> Options {
    Options {
        heads,
        kv_heads,
        head_dim,
        dtype,
        scale: None,
        selection: Selection::Rpc,
        rpc,
        max_merges: 0,
        recorded_layers: 0,
        recorded_sequences: 0,
    }
}

/// A workspace of exactly the size, at an odd address.
pub struct Memory(Vec<u8>);

impl Memory {
    pub fn new(compressor: &Compressor, batch: &Batch<'_>) -> Memory {
        Memory(vec![0xA5; compressor.sizes(batch).unwrap().workspace_bytes + 1])
    }

    pub fn workspace(&mut self) -> Workspace {
        // SAFETY: one byte within.
        Workspace::new(unsafe { self.0.as_mut_ptr().add(1) }.cast(), self.0.len() - 1).unwrap()
    }
}

/// A host's ring of float32 queries `[rows][places][heads][head_dim]`.
pub fn ring<'a>(
    queries: &'a [f32],
    heads: usize,
    head_dim: usize,
    places: usize,
    oldest: Option<&'a [i32]>,
) -> Window<'a> {
    let strides = [places * heads * head_dim, heads * head_dim, head_dim];
    Window::Ring {
        queries: queries.as_ptr().cast(),
        strides: strides.map(|stride| stride as i64),
        oldest,
        ring_tokens: places as u32,
        dtype: Dtype::F32,
    }
}

pub fn random_numbers(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.number() * 2.0).collect()
}
