//! Where the graph's external weights lie: every location must be a file that the manifest lists,
//! and every range must lie inside it. ONNX Runtime maps what the graph names, so this is checked
//! before it sees the file. On the way the graph's quantised matrices are noted.
//!
//! A walk over the protobuf wire format, no more of it than this question needs. Field numbers are
//! those of onnx.proto: ModelProto.graph 7 and .functions 25, GraphProto.node 1, .initializer 5 and
//! .sparse_initializer 15, SparseTensorProto.values 1 and .indices 2, FunctionProto.node 7,
//! NodeProto.input 1, .op_type 4 and .attribute 5, AttributeProto.t 5, .g 6, .tensors 10, .graphs 11, .sparse_tensor 22 and
//! .sparse_tensors 23, TensorProto.dims 1, .data_type 2, .name 8 and .external_data 13,
//! StringStringEntryProto.key 1 and .value 2.

use std::collections::HashSet;
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

/// An initialiser of the graph whose bytes lie in a file of the model folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub name: String,
    pub dims: Vec<i64>,
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
}

/// Checks every place, and finds the matrices of `QuantizedLinear`: initialisers of unsigned bytes.
pub(super) fn check<'a>(
    graph: &'a [u8],
    folder: &'a Path,
    manifest: &'a Manifest,
) -> Result<Vec<StoredTensor>> {
    let mut guard = Guard {
        manifest,
        folder,
        bytes: Vec::new(),
        multiplied: HashSet::new(),
    };
    guard.walk(graph, Message::Model, 0)?;
    let Guard {
        mut bytes,
        multiplied,
        ..
    } = guard;
    bytes.retain(|tensor| multiplied.contains(tensor.name.as_bytes()));
    Ok(bytes)
}

struct Guard<'a> {
    manifest: &'a Manifest,
    folder: &'a Path,
    /// Initialisers of unsigned bytes.
    bytes: Vec<StoredTensor>,
    /// What the nodes of QuantizedLinear take.
    multiplied: HashSet<&'a [u8]>,
}

/// TensorProto.DataType.UINT8.
const UINT8: u64 = 2;
/// Tensors and nodes of the model's graph are that deep.
const IN_GRAPH: usize = 2;

impl<'a> Guard<'a> {
    fn walk(&mut self, bytes: &'a [u8], message: Message, depth: usize) -> Result<()> {
        if depth > DEPTH_LIMIT {
            return Err(damaged(format!(
                "expected at most {DEPTH_LIMIT} nested messages, found more"
            )));
        }
        let mut location: Option<(String, u64, Option<u64>)> = None;
        let (mut name, mut data_type, mut dims) = (&b""[..], 0, Vec::new());
        let (mut inputs, mut operator) = (Vec::new(), &b""[..]);
        for field in Fields(bytes) {
            let Field {
                number,
                value,
                content,
            } = field?;
            use Message::{Attribute, Function, Graph, Model, Node, SparseTensor, Tensor};
            let child = match (message, number) {
                (Model, 7) | (Attribute, 6 | 11) => Graph,
                (Model, 25) => Function,
                (Graph, 1) | (Function, 7) => Node,
                (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
                (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
                // A function's are defaults, which stand in its nodes where a call has none.
                (Node, 5) | (Function, 11) => Attribute,
                (Tensor, 13) => {
                    let entry = location.get_or_insert_with(|| (String::new(), 0, None));
                    read_external_entry(content, entry)?;
                    continue;
                }
                (Tensor, 1) => {
                    read_dims(value, content, &mut dims)?;
                    continue;
                }
                (Tensor, 2) => {
                    data_type = value;
                    continue;
                }
                (Tensor, 8) => {
                    name = content;
                    continue;
                }
                (Node, 1) => {
                    inputs.push(content);
                    continue;
                }
                (Node, 4) => {
                    operator = content;
                    continue;
                }
                _ => continue,
            };
            self.walk(content, child, depth + 1)?;
        }
        if depth == IN_GRAPH && operator == b"QuantizedLinear" {
            self.multiplied.extend(inputs);
        }
        let Some((file, offset, length)) = location else {
            return Ok(());
        };
        self.check_location(&file, offset, length)?;
        if let (UINT8, IN_GRAPH, Some(bytes)) = (data_type, depth, length) {
            let name = std::str::from_utf8(name)
                .map_err(|_| damaged("initialiser: expected a name in UTF-8, found other bytes".into()))?;
            let expected = dims.iter().try_fold(1u64, |product, &dim| {
                product.checked_mul(u64::try_from(dim).ok()?)
            });
            if expected != Some(bytes) {
                return Err(damaged(format!(
                    "initialiser {name:?}: expected the bytes of {dims:?}, found {bytes}"
                )));
            }
            self.bytes.push(StoredTensor {
                name: name.to_string(),
                dims,
                file,
                offset,
                bytes,
            });
        }
        Ok(())
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
        let field = field?;
        match field.number {
            1 => key = field.content,
            2 => value = field.content,
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

/// Dimensions come one to a field, or many in one.
fn read_dims(value: u64, mut packed: &[u8], dims: &mut Vec<i64>) -> Result<()> {
    if packed.is_empty() {
        dims.push(value.cast_signed());
    }
    while !packed.is_empty() {
        let mut fields = Fields(packed);
        let dim = fields
            .varint()
            .ok_or_else(|| damaged("dimensions: expected numbers, found a broken field".into()))?;
        dims.push(dim.cast_signed());
        packed = fields.0;
    }
    Ok(())
}

/// A field of a message: the number, its value if it is a varint (else 0), its content if it is length-delimited (else empty).
struct Field<'a> {
    number: u64,
    value: u64,
    content: &'a [u8],
}

/// The fields of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;

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
    fn read(&mut self) -> Option<Field<'a>> {
        // Readers of the format take 32 bits: of more they would see another field than we do.
        let key = self.varint().filter(|&key| key <= u64::from(u32::MAX))?;
        let mut value = 0;
        let content = match key & 7 {
            0 => {
                value = self.varint()?;
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
        Some(Field {
            number: key >> 3,
            value,
            content,
        })
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

    fn verdict(model: &[u8]) -> Result<Vec<StoredTensor>> {
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
            field(25, &field(11, &field(5, tensor))),
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
    fn matrices_are_found() {
        let dims = [(1u64, 249u64), (1, 4)].map(|(number, dim)| [varint(number << 3), varint(dim)].concat());
        let packed = field(1, &[varint(249), varint(4)].concat());
        let named = |name: &str, data_type: u8, dims: &[u8]| {
            let place = tensor("model.onnx.data", "4", "996");
            [dims, &[2 << 3, data_type], &field(8, name.as_bytes()), &place].concat()
        };
        let initialiser = |tensor: &[u8]| field(7, &field(5, tensor));
        let node = |operator: &str, inputs: &[&str]| {
            let inputs: Vec<u8> = inputs.iter().flat_map(|name| field(1, name.as_bytes())).collect();
            field(7, &field(1, &[inputs, field(4, operator.as_bytes())].concat()))
        };
        let model = [
            initialiser(&named("one", 2, &dims.concat())),
            initialiser(&named("two", 2, &packed)),
            initialiser(&named("floats", 1, &packed)),
            initialiser(&named("table", 2, &packed)),
            node("QuantizedLinear", &["x", "floats", "two"]),
            node("QuantizedLinear", &["one", "attribute"]),
            node("QuantizedGather", &["x", "table"]),
            field(
                7,
                &field(1, &field(5, &field(5, &named("attribute", 2, &packed)))),
            ),
        ];
        let expected = ["one", "two"].map(|name| StoredTensor {
            name: name.into(),
            dims: vec![249, 4],
            file: "model.onnx.data".into(),
            offset: 4,
            bytes: 996,
        });
        assert_eq!(verdict(&model.concat()).unwrap(), expected);
        for dims in [&b""[..], &[1 << 3, 7], &field(1, &varint(u64::MAX))] {
            let error = verdict(&initialiser(&named("wrong", 2, dims))).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("\"wrong\": expected the bytes of"), "{error}");
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
        // 2^32 more than the key of a tensor's field 13: a reader of 32 bits takes it for that.
        let key = varint(1 << 32 | 13 << 3 | 2);
        let hidden = field(7, &field(5, &[key, varint(0)].concat()));
        let error = verdict(&hidden).unwrap_err().to_string();
        assert!(error.contains("broken field"), "{error}");
        let nested = (0..1000).fold(Vec::new(), |inner: Vec<u8>, _| {
            field(1, &field(5, &field(6, &inner)))
        });
        let error = verdict(&field(7, &nested)).unwrap_err().to_string();
        assert!(error.contains("nested"), "{error}");
    }
}
