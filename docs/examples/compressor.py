"""The compressor of libreasoning_rpc.so through ctypes: the structs of reasoning_rpc.h, as far as decode_loop.py uses them."""

import ctypes
import os
import sys
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p

F32 = 1


def struct(name: str, *groups: tuple[type, str]) -> type:
    members = [(member, kind) for kind, names in groups for member in names.split()]
    made = type(name, (ctypes.Structure,), {"_fields_": [("struct_size", c_size_t), *members]})
    return lambda **values: made(struct_size=ctypes.sizeof(made), **values)


Options = struct(
    "Options", (c_uint32, "device device_index heads kv_heads head_dim dtype"), (c_float, "scale"),
    (c_uint32, "policy interval window ratio aggregation pooling kernel max_merges recorded_layers recorded_sequences"),
    (c_uint32, "reserved"), (c_void_p, "select user_data"),
)  # fmt: skip
Layer = struct(
    "Layer", (c_void_p, "keys values key_scales value_scales"), (c_int64 * 3, "key_strides value_strides"),
    (c_int64 * 3, "key_scale_strides value_scale_strides"), (c_uint32, "layer reserved"),
)  # fmt: skip
Batch = struct(
    "Batch", (c_void_p, "lengths prompt_lengths compressions rows block_table"), (c_int64, "block_table_stride"),
    (c_void_p, "shared_blocks"), (c_size_t, "shared_count"), (c_void_p, "spare_blocks"), (c_size_t, "spare_count"),
    (c_void_p, "stream"), (c_uint32, "sequences row_count block_entries block_count"),
)  # fmt: skip
Window = struct(
    "Window", (c_void_p, "queries"), (c_int64 * 3, "strides"), (c_void_p, "oldest slots"), (c_uint32, "ring_tokens dtype")
)


class Copy(ctypes.Structure):
    _fields_ = [("sequence", c_uint32), ("index", c_uint32), ("source", c_int32), ("to", c_int32)]


Plan = struct(
    "Plan", (POINTER(c_uint32), "kept_counts kept"), (c_size_t, "kept_len"), (POINTER(c_int32), "new_lengths"),
    (POINTER(Copy), "copies"), (c_size_t, "copy_count"), (POINTER(c_int32), "freed_blocks"), (c_size_t, "freed_count"),
    (c_void_p, "merges"), (c_size_t, "merge_count"), (c_uint32, "sequences sets"),
)  # fmt: skip
Sizes = struct("Sizes", (c_size_t, "workspace_bytes score_count"))

library = ctypes.CDLL(os.environ.get("RRPC_LIBRARY", "libreasoning_rpc.so.0"))
library.rrpc_error_message.restype, library.rrpc_error_message.argtypes = c_char_p, [c_void_p]


def call(name: str, *arguments) -> None:
    """rrpc_compressor_NAME; an error ends the program."""
    function = getattr(library, f"rrpc_compressor_{name}")
    function.restype = c_void_p
    if error := function(*arguments):
        sys.exit(f"{name}: {library.rrpc_error_message(error).decode()}")
