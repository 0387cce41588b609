//! Caches in memory that a host laid out: dense rows, head-major pages, token-major pages, with room between everything.

use crate::rng::Rng;
use half::{bf16, f16};
use reasoning_rpc_cpu::{KvPages, KvPagesMut, Layout, Scales, Stored};
use std::ptr::NonNull;

/// A format that caches are stored in, with its definition, independent of the library's.
pub trait Format: Stored {
    fn random(rng: &mut Rng) -> Self;
    fn number(self) -> f32;
    fn code(self) -> u32;
}

impl Format for f32 {
    fn random(rng: &mut Rng) -> f32 {
        rng.normal()
    }
    fn number(self) -> f32 {
        self
    }
    fn code(self) -> u32 {
        self.to_bits()
    }
}

impl Format for f16 {
    fn random(rng: &mut Rng) -> f16 {
        f16::from_f32(rng.normal())
    }
    fn number(self) -> f32 {
        f16::to_f32(self)
    }
    fn code(self) -> u32 {
        self.to_bits().into()
    }
}

impl Format for bf16 {
    fn random(rng: &mut Rng) -> bf16 {
        bf16::from_f32(rng.normal())
    }
    fn number(self) -> f32 {
        bf16::to_f32(self)
    }
    fn code(self) -> u32 {
        self.to_bits().into()
    }
}

impl Format for i8 {
    fn random(rng: &mut Rng) -> i8 {
        rng.between(0, 255) as u8 as i8
    }
    fn number(self) -> f32 {
        f32::from(self)
    }
    fn code(self) -> u32 {
        self as u8 as u32
    }
}

/// A test body for all formats.
pub trait ForFormat {
    fn run<E: Format>(&mut self);
}

pub fn for_formats(test: &mut impl ForFormat) {
    test.run::<f32>();
    test.run::<f16>();
    test.run::<bf16>();
    test.run::<i8>();
}

/// A key or a value of one entry.
#[derive(Clone)]
pub struct Row<E> {
    pub elements: Vec<E>,
    /// 1 for formats without scales.
    pub scale: f32,
}

impl<E: Format> Row<E> {
    pub fn random(head_dim: usize, rng: &mut Rng) -> Row<E> {
        Row {
            elements: (0..head_dim).map(|_| E::random(rng)).collect(),
            scale: match rng.between(0, 9) {
                _ if !E::SCALED => 1.0,
                0 => rng.pick(&[0.0, 1e-40, f32::MIN_POSITIVE]),
                _ => (rng.unit() / 64.0) as f32,
            },
        }
    }

    /// What it stands for.
    pub fn numbers(&self) -> Vec<f32> {
        self.elements.iter().map(|e| e.number() * self.scale).collect()
    }

    /// What is stored, bit for bit.
    pub fn codes(&self) -> (Vec<u32>, u32) {
        (
            self.elements.iter().map(|e| e.code()).collect(),
            self.scale.to_bits(),
        )
    }
}

/// One tensor that holds the keys (values, scales) of all blocks and KV heads.
#[derive(Clone)]
struct Tensor<T> {
    data: Vec<T>,
    /// Elements from one block, KV head, entry to the next.
    strides: [usize; 3],
}

impl<T: Copy> Tensor<T> {
    /// `width` elements per entry, laid out as `shape` says, filled with what must not change.
    fn new(shape: &Shape, width: usize, rng: &mut Rng, fill: impl FnMut(&mut Rng) -> T) -> Tensor<T> {
        let mut fill = fill;
        let room = |rng: &mut Rng| rng.between(0, 2) * 3;
        let strides = if shape.token_major {
            let head = width + room(rng);
            let entry = shape.kv_heads * head + room(rng);
            [shape.block_entries * entry + room(rng), head, entry]
        } else {
            let entry = width + room(rng);
            let head = shape.block_entries * entry + room(rng);
            [shape.kv_heads * head + room(rng), head, entry]
        };
        Tensor {
            data: (0..shape.blocks * strides[0]).map(|_| fill(rng)).collect(),
            strides,
        }
    }

    fn at(&self, block: usize, head: usize, entry: usize) -> usize {
        block * self.strides[0] + head * self.strides[1] + entry * self.strides[2]
    }

    /// The addresses of a KV head's pages.
    fn table(&mut self, blocks: &[usize], head: usize) -> Vec<NonNull<T>> {
        let base = self.data.as_mut_ptr();
        let address = |&block: &usize| NonNull::new(base.wrapping_add(self.at(block, head, 0))).unwrap();
        blocks.iter().map(address).collect()
    }
}

pub struct Shape {
    pub token_major: bool,
    pub kv_heads: usize,
    pub block_entries: usize,
    pub blocks: usize,
}

impl Shape {
    /// One block for everything.
    pub fn dense(kv_heads: usize, len: usize, rng: &mut Rng) -> Shape {
        Shape {
            token_major: rng.coin(0.5),
            kv_heads,
            block_entries: len + rng.between(0, 5),
            blocks: 1,
        }
    }

    pub fn paged(token_major: bool, kv_heads: usize, len: usize, rng: &mut Rng) -> Shape {
        let block_entries = rng.pick(&[1, 3, 8, 16, 64]);
        Shape {
            token_major,
            kv_heads,
            block_entries,
            blocks: len.div_ceil(block_entries) + rng.between(1, 3),
        }
    }
}

/// One sequence's cache in one layer of a host.
pub struct Host<E> {
    head_dim: usize,
    len: usize,
    block_entries: usize,
    /// The sequence's blocks.
    blocks: Vec<usize>,
    keys: Tensor<E>,
    values: Tensor<E>,
    key_scales: Tensor<f32>,
    value_scales: Tensor<f32>,
    /// Of the KV head that is looked at.
    tables: (Vec<NonNull<E>>, Vec<NonNull<E>>),
    scale_tables: (Vec<NonNull<f32>>, Vec<NonNull<f32>>),
}

impl<E: Format> Host<E> {
    /// `heads[h][e]` are the key and the value of entry e of KV head h.
    pub fn new(shape: &Shape, heads: &[Vec<(Row<E>, Row<E>)>], rng: &mut Rng) -> Host<E> {
        let (len, head_dim) = (heads[0].len(), heads[0][0].0.elements.len());
        let mut order: Vec<usize> = (0..shape.blocks).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.between(0, i));
        }
        order.truncate(len.div_ceil(shape.block_entries));
        let mut host = Host {
            head_dim,
            len,
            block_entries: shape.block_entries,
            blocks: order,
            keys: Tensor::new(shape, head_dim, rng, E::random),
            values: Tensor::new(shape, head_dim, rng, E::random),
            key_scales: Tensor::new(shape, 1, rng, Rng::normal),
            value_scales: Tensor::new(shape, 1, rng, Rng::normal),
            tables: Default::default(),
            scale_tables: Default::default(),
        };
        for (h, entries) in heads.iter().enumerate() {
            for (e, (key, value)) in entries.iter().enumerate() {
                let (block, at) = (host.blocks[e / host.block_entries], e % host.block_entries);
                let put = |tensor: &mut Tensor<E>, scales: &mut Tensor<f32>, row: &Row<E>| {
                    let start = tensor.at(block, h, at);
                    tensor.data[start..start + head_dim].copy_from_slice(&row.elements);
                    let start = scales.at(block, h, at);
                    scales.data[start] = row.scale;
                };
                put(&mut host.keys, &mut host.key_scales, key);
                put(&mut host.values, &mut host.value_scales, value);
            }
        }
        host
    }

    fn layout(&self) -> Layout {
        Layout {
            page_entries: self.block_entries,
            key_stride: self.keys.strides[2],
            value_stride: self.values.strides[2],
            head_dim: self.head_dim,
        }
    }

    /// The cache of one KV head, to write to.
    pub fn head(&mut self, head: usize) -> KvPagesMut<'_, E> {
        self.tables = (
            self.keys.table(&self.blocks, head),
            self.values.table(&self.blocks, head),
        );
        self.scale_tables = (
            self.key_scales.table(&self.blocks, head),
            self.value_scales.table(&self.blocks, head),
        );
        let scales = E::SCALED.then_some(Scales {
            keys: &self.scale_tables.0,
            values: &self.scale_tables.1,
            key_stride: self.key_scales.strides[2],
            value_stride: self.value_scales.strides[2],
        });
        // SAFETY: the pages lie in the tensors, which are initialised, borrowed exclusively and laid out without overlaps.
        let pages = unsafe {
            KvPagesMut::with_scales(&self.tables.0, &self.tables.1, scales, self.layout(), self.len)
        };
        pages.unwrap()
    }

    /// A view of one KV head, made as a reader makes it.
    pub fn with_head<R>(&mut self, head: usize, look: impl FnOnce(&KvPages<'_, E>) -> R) -> R {
        look(&self.head(head).view())
    }

    /// The key and the value of an entry as they are stored.
    pub fn entry(&self, head: usize, entry: usize) -> (Row<E>, Row<E>) {
        let (block, at) = (
            self.blocks[entry / self.block_entries],
            entry % self.block_entries,
        );
        let get = |tensor: &Tensor<E>, scales: &Tensor<f32>| Row {
            elements: tensor.data[tensor.at(block, head, at)..][..self.head_dim].to_vec(),
            scale: if E::SCALED {
                scales.data[scales.at(block, head, at)]
            } else {
                1.0
            },
        };
        (
            get(&self.keys, &self.key_scales),
            get(&self.values, &self.value_scales),
        )
    }

    /// All memory, bit for bit, with that of a KV head's first `len` entries blanked.
    pub fn around(&self, head: usize) -> Vec<u64> {
        let mut all = Vec::new();
        let mut add = |codes: Vec<u32>, strides: [usize; 3], width: usize| {
            let mut codes: Vec<u64> = codes.into_iter().map(u64::from).collect();
            for e in 0..self.len {
                let block = self.blocks[e / self.block_entries];
                let start = block * strides[0] + head * strides[1] + e % self.block_entries * strides[2];
                codes[start..start + width].fill(u64::MAX);
            }
            all.extend(codes);
        };
        for tensor in [&self.keys, &self.values] {
            let codes = tensor.data.iter().map(|e| e.code()).collect();
            add(codes, tensor.strides, self.head_dim);
        }
        for tensor in [&self.key_scales, &self.value_scales] {
            let width = usize::from(E::SCALED);
            add(
                tensor.data.iter().map(|x| x.to_bits()).collect(),
                tensor.strides,
                width,
            );
        }
        all
    }
}
