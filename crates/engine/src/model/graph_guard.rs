//! Where the graph's external weights lie: every location must be a file that the manifest lists,
//! and every range must lie inside it. ONNX Runtime maps what the graph names, so this is checked
//! before it sees the file.
//!
//! A walk over the protobuf wire format, no more of it than this question needs. Field numbers are
//! those of onnx.proto: ModelProto.graph 7 and .functions 25, GraphProto.node 1, .initializer 5 and
//! .sparse_initializer 15, SparseTensorProto.values 1 and .indices 2, FunctionProto.node 7,
//! NodeProto.attribute 5, AttributeProto.t 5, .g 6, .tensors 10, .graphs 11, .sparse_tensor 22 and
//! .sparse_tensors 23, TensorProto.external_data 13, StringStringEntryProto.key 1 and .value 2.

use std::path::Path;

use super::Manifest;
use crate::error::{Error, Result};

/// Subgraphs nest a few levels in honest files.
const DEPTH_LIMIT: usize = 32;

#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
}

pub(super) fn check(graph: &[u8], folder: &Path, manifest: &Manifest) -> Result<()> {
    let mut guard = Guard { manifest, folder };
    guard.walk(graph, Message::Model, 0)
}

struct Guard<'a> {
    manifest: &'a Manifest,
    folder: &'a Path,
}

impl Guard<'_> {
    fn walk(&mut self, bytes: &[u8], message: Message, depth: usize) -> Result<()> {
        if depth > DEPTH_LIMIT {
            return Err(damaged(format!(
                "expected at most {DEPTH_LIMIT} nested messages, found more"
            )));
        }
        let mut location: Option<(String, u64, Option<u64>)> = None;
        for field in Fields(bytes) {
            let (number, content) = field?;
            use Message::{Attribute, Function, Graph, Model, Node, SparseTensor, Tensor};
            let child = match (message, number) {
                (Model, 7) | (Attribute, 6 | 11) => Graph,
                (Model, 25) => Function,
                (Graph, 1) | (Function, 7) => Node,
                (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
                (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
                (Node, 5) => Attribute,
                (Tensor, 13) => {
                    let entry = location.get_or_insert_with(|| (String::new(), 0, None));
                    read_external_entry(content, entry)?;
                    continue;
                }
                _ => continue,
            };
            self.walk(content, child, depth + 1)?;
        }
        match location {
            Some((name, offset, length)) => self.check_location(&name, offset, length),
            None => Ok(()),
        }
    }

    fn check_location(&self, name: &str, offset: u64, length: Option<u64>) -> Result<()> {
        let Some(size) = self.manifest.file_size(name) else {
            return Err(Error::Model(format!(
                "model.onnx: external data: expected a file that the manifest of {} lists, found {name:?}",
                self.folder.display()
            )));
        };
        let end = offset.checked_add(length.unwrap_or(0));
        if end.is_none_or(|end| end > size) {
            return Err(Error::Model(format!(
                "model.onnx: external data: expected a range inside the {size} bytes of {name}, found offset {offset} and length {}",
                length.unwrap_or(0)
            )));
        }
        Ok(())
    }
}

fn read_external_entry(bytes: &[u8], entry: &mut (String, u64, Option<u64>)) -> Result<()> {
    let (mut key, mut value) = (&b""[..], &b""[..]);
    for field in Fields(bytes) {
        match field? {
            (1, content) => key = content,
            (2, content) => value = content,
            _ => {}
        }
    }
    let text = std::str::from_utf8(value)
        .map_err(|_| damaged("external data: expected UTF-8, found other bytes".into()))?;
    let number = || {
        text.parse::<u64>().map_err(|_| {
            damaged(format!(
                "external data: expected a number of bytes, found {text:?}"
            ))
        })
    };
    match key {
        b"location" => entry.0 = text.to_string(),
        b"offset" => entry.1 = number()?,
        b"length" => entry.2 = Some(number()?),
        _ => {}
    }
    Ok(())
}

/// The fields of a message: number, and content where it is length-delimited (else empty).
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| damaged("expected an ONNX protobuf, found a broken field".into())))
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u64, &'a [u8])> {
        let key = self.varint()?;
        let content = match key & 7 {
            0 => {
                self.varint()?;
                &[][..]
            }
            1 => self.take(8).map(|_| &[][..])?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.take(length)?
            }
            5 => self.take(4).map(|_| &[][..])?,
            _ => return None,
        };
        Some((key >> 3, content))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

fn damaged(text: String) -> Error {
    Error::Model(format!("model.onnx: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// A length-delimited field.
    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        [
            varint(number << 3 | 2),
            varint(content.len() as u64),
            content.to_vec(),
        ]
        .concat()
    }

    fn tensor(location: &str, offset: &str, length: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            field(
                13,
                &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
            )
        };
        // Field 14, data_location = EXTERNAL, is a varint between them.
        [
            entry("location", location),
            vec![14 << 3, 1],
            entry("offset", offset),
            entry("length", length),
        ]
        .concat()
    }

    fn manifest() -> Manifest {
        let text = r#"{"format": "reasoning-rpc-model", "graph_contract": 1, "flavour": "cached", "weights": "fp32",
            "architecture": "llama", "dimensions": {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8,
            "hidden_size": 16, "vocab_size": 10, "max_positions": 100, "parameters": 1},
            "tokens": {"bos": null, "add_bos": false, "stop": []},
            "files": {"model.onnx": {"size": 1, "sha256": ""}, "model.onnx.data": {"size": 1000, "sha256": ""}}}"#;
        Manifest::parse(text.as_bytes()).unwrap()
    }

    fn verdict(model: &[u8]) -> Result<()> {
        check(model, Path::new("/models/x"), &manifest())
    }

    /// The tensor as an initialiser, and everywhere else that a graph can hide one.
    fn places(tensor: &[u8]) -> Vec<Vec<u8>> {
        let graph = |content: &[u8]| field(7, content);
        let attribute = |content: &[u8]| graph(&field(1, &field(5, content)));
        let subgraph = field(6, &field(1, &field(5, &field(5, tensor))));
        vec![
            graph(&field(5, tensor)),
            graph(&field(15, &field(1, tensor))),
            graph(&field(15, &field(2, tensor))),
            attribute(&field(5, tensor)),
            attribute(&field(10, tensor)),
            attribute(&field(22, &field(1, tensor))),
            attribute(&field(23, &field(2, tensor))),
            attribute(&subgraph),
            attribute(&field(11, &field(5, tensor))),
            field(25, &field(7, &field(5, &field(5, tensor)))),
        ]
    }

    #[test]
    fn only_listed_files_and_ranges_inside_them() {
        for model in places(&tensor("model.onnx.data", "4", "996")) {
            verdict(&model).unwrap();
        }
        for (location, offset, length, expected) in [
            ("../model.onnx.data", "0", "1", "found \"../model.onnx.data\""),
            ("/etc/passwd", "0", "1", "found \"/etc/passwd\""),
            ("other", "0", "1", "found \"other\""),
            ("", "0", "1", "found \"\""),
            ("model.onnx.data", "4", "997", "found offset 4 and length 997"),
            ("model.onnx.data", "1001", "0", "found offset 1001"),
            (
                "model.onnx.data",
                "18446744073709551615",
                "2",
                "inside the 1000 bytes",
            ),
            ("model.onnx.data", "-1", "2", "found \"-1\""),
        ] {
            for model in places(&tensor(location, offset, length)) {
                let error = verdict(&model).unwrap_err().to_string();
                assert!(error.contains(expected), "{error} for {expected}");
            }
        }
    }

    #[test]
    fn a_broken_file_is_an_error_and_never_more() {
        let whole = places(&tensor("model.onnx.data", "0", "10")).concat();
        verdict(&whole).unwrap();
        assert!(verdict(&whole[..whole.len() - 1]).is_err());
        let mut random = reasoning_rpc_test_support::Random::new(reasoning_rpc_test_support::seed());
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.bits() as u8;
            }
            let _ = verdict(&bytes[..random.below(bytes.len() + 1)]);
        }
        let nested = (0..1000).fold(Vec::new(), |inner: Vec<u8>, _| {
            field(1, &field(5, &field(6, &inner)))
        });
        let error = verdict(&field(7, &nested)).unwrap_err().to_string();
        assert!(error.contains("nested"), "{error}");
    }
}
