"""Writes ONNX external data as a stream: one pass, hashed on the way, nothing held back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

ALIGNMENT = 4096  # a page: runtimes map weights in place
INLINE_BELOW = 1024  # bytes; smaller tensors lie in model.onnx itself

_DATA_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


class WeightsFile:
    """model.onnx.data, and the initialisers that point into it."""

    def __init__(self, path: Path):
        self.name = path.name
        self.initializers: list[TensorProto] = []
        self._names: set[str] = set()
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def close(self) -> dict:
        """Size and sha256, as the manifest lists them."""
        self._file.close()
        return {"size": self._size, "sha256": self._hash.hexdigest()}

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_exception) -> None:
        self._file.close()

    def add(self, name: str, array: np.ndarray) -> str:
        """A whole array; returns the name, to be used as a node's input."""
        array = np.ascontiguousarray(array)
        if array.nbytes < INLINE_BELOW:
            self._append(onnx.numpy_helper.from_array(array, name))
            return name
        return self.stream(name, array.shape, array.dtype, [array])

    def stream(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type, pieces: Iterable[np.ndarray]) -> str:
        """An array that arrives in pieces, in row-major order."""
        self._write(b"\0" * (-self._size % ALIGNMENT))
        offset = self._size
        for piece in pieces:
            self._write(memoryview(np.ascontiguousarray(piece, dtype)).cast("B"))
        length = self._size - offset
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert length == expected, f"{name}: wrote {length} bytes, its shape needs {expected}"
        self._refer(name, shape, np.dtype(dtype), offset, length)
        return name

    def alias(self, name: str, shape: tuple[int, ...], target: str) -> str:
        """A second initialiser over the bytes of `target`, with another shape."""
        entry = next(tensor for tensor in self.initializers if tensor.name == target)
        copy = TensorProto()
        copy.CopyFrom(entry)
        copy.name = name
        del copy.dims[:]
        copy.dims.extend(shape)
        self._append(copy)
        return name

    def _append(self, tensor: TensorProto) -> None:
        assert tensor.name not in self._names, f"two initialisers are called {tensor.name}"
        self._names.add(tensor.name)
        self.initializers.append(tensor)

    def _refer(self, name: str, shape: tuple[int, ...], dtype: np.dtype, offset: int, length: int) -> None:
        tensor = TensorProto(name=name, data_type=_DATA_TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self._append(tensor)

    def _write(self, data) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
