"""The GGUF container: metadata and the table of tensors, with every length checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Read here rather
than with the gguf package's reader, which keeps several array objects per string of the vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from .errors import ExportError
from .tensors import StoredTensor, row_bytes

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class GgufFile:
    metadata: dict[str, Any]  # arrays are lists
    tensors: dict[str, StoredTensor]  # by name in the file; shapes are [out, in]


class _Damaged(Exception):
    pass


def read_gguf(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from None
    except (_Damaged, ValueError) as error:  # ValueError: an empty file cannot be mapped, a text is not UTF-8
        raise ExportError(f"{path}: not a readable GGUF file: {error}") from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.position = path, data, 0

    def read(self) -> GgufFile:
        if self.take(4) != b"GGUF":
            raise _Damaged("it does not begin with GGUF")
        version = self.unsigned("<I")
        if version not in (2, 3):
            raise _Damaged(f"version {version}; 2 and 3 are supported, little-endian")
        num_tensors, num_entries = self.unsigned("<Q"), self.unsigned("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self.text()
            if key in metadata:
                raise _Damaged(f"metadata key {key} appears twice")
            metadata[key] = self.value(self.unsigned("<I"))
        entries = [self.tensor_entry() for _ in range(num_tensors)]
        return GgufFile(metadata, self.locate(entries, metadata.get("general.alignment", 32)))

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise _Damaged(f"it is truncated: {size} bytes needed at {self.position}, the file has {len(self.data)}")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def unsigned(self, layout: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return self.take(self.unsigned("<Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            kind, length = self.unsigned("<I"), self.unsigned("<Q")
            if kind == GGUFValueType.STRING:
                return [self.text() for _ in range(length)]
            dtype = self.scalar_type(kind)
            return np.frombuffer(self.take(length * dtype.itemsize), dtype).tolist()
        dtype = self.scalar_type(kind)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def scalar_type(self, kind: int) -> np.dtype:
        if kind not in _SCALARS:
            raise _Damaged(f"metadata type {kind} is unknown")
        return np.dtype(_SCALARS[kind])

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type number, offset in the data section); a GGUF lists dimensions innermost first."""
        name = self.text()
        rank = self.unsigned("<I")
        if not 1 <= rank <= 4:
            raise _Damaged(f"tensor {name} has {rank} dimensions")
        shape = tuple(self.unsigned("<Q") for _ in range(rank))[::-1]
        return name, shape, self.unsigned("<I"), self.unsigned("<Q")

    def locate(self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: Any) -> dict[str, StoredTensor]:
        if not isinstance(alignment, int) or alignment <= 0:
            raise _Damaged(f"general.alignment is {alignment!r}")
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise _Damaged(f"tensor {name} appears twice")
            try:
                encoding = GGMLQuantizationType(kind).name
            except ValueError:
                raise ExportError(f"{self.path}: tensor {name}: type {kind} is not supported") from None
            tensor = StoredTensor(name, self.path, start + offset, shape, encoding)
            # Three and more dimensions (experts) belong to no supported family: their shape is refused later.
            if len(shape) <= 2:
                size = row_bytes(encoding, tensor.width, name) * tensor.num_rows
                if tensor.offset + size > len(self.data):
                    raise _Damaged(
                        f"it is truncated: tensor {name} ends at {tensor.offset + size}, the file has {len(self.data)}"
                    )
            tensors[name] = tensor
        return tensors
