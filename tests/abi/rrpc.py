"""libreasoning_rpc.so through ctypes, as far as the tests need it."""

import ctypes
import os
import pathlib
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Struct(ctypes.Structure):
    """A struct whose size goes first."""

    def __init__(self) -> None:
        super().__init__()
        self.struct_size = ctypes.sizeof(self)


def fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    named = [(name, kind) for kind, names in groups for name in names.split()]
    return [("struct_size", c_size_t), *named]


class EngineOptions(Struct):
    _fields_ = fields(
        (c_char_p, "onnxruntime"),
        (c_uint64, "budget_bytes"),
        (c_uint32, "threads cache_dtype block_entries prefill_chunk verify_weights map_weights"),
    )


class EngineInfo(Struct):
    _fields_ = fields(
        (c_char_p, "simd"),
        (c_uint64, "parameters token_bytes budget_bytes budget_used_bytes"),
        (c_uint32, "context vocab layers heads kv_heads head_dim hidden flavour cache_dtype block_entries"),
        (c_uint32, "has_tokenizer has_chat_template"),
    )


class SequenceOptions(Struct):
    _fields_ = fields(
        (c_uint32, "policy interval window ratio aggregation pooling kernel record_kept"),
        (c_float, "temperature top_p min_p repetition_penalty"),
        (c_uint32, "top_k reserved"),
        (c_uint64, "seed budget_entries budget_bytes"),
        (c_uint32, "softmax value_norms"),
        (c_float, "history redundancy"),
        (c_uint32, "queries reserved2"),
        (POINTER(c_uint32), "delimiters"),
        (c_size_t, "num_delimiters"),
        (POINTER(c_uint32), "gists"),
        (c_size_t, "num_gists"),
        (c_uint32, "resume reserved3"),
    )


class Metrics(Struct):
    _fields_ = fields(
        (c_uint64, "sequences_alive sequences_created steps prefill_tokens decode_tokens"),
        (c_uint64, "compressions entries_dropped budget_refusals failed_steps"),
        (c_double, "step_seconds compaction_seconds"),
        (c_uint64, "budget_bytes budget_used_bytes budget_promised_bytes budget_peak_bytes"),
        (c_double, "attention_seconds product_seconds"),
    )


class Compression(Struct):
    _fields_ = fields((c_uint64, "at_token len_before len_after"), (c_uint32, "layer kept_sets"))


class Stats(Struct):
    _fields_ = fields(
        (c_uint64, "prefill_tokens decode_tokens compressions"),
        (c_double, "prefill_seconds decode_seconds compaction_seconds"),
        (c_uint64, "cache_bytes cache_peak_bytes cache_uncompressed_bytes"),
    )


class Error(Exception):
    """A code and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


FALLIBLE = {
    "engine_options_init": [POINTER(EngineOptions), c_size_t],
    "engine_open": [c_char_p, POINTER(EngineOptions), POINTER(c_void_p)],
    "engine_get_info": [c_void_p, POINTER(EngineInfo)],
    "sequence_options_init": [c_void_p, POINTER(SequenceOptions), c_size_t],
    "sequence_create": [c_void_p, POINTER(SequenceOptions), POINTER(c_void_p)],
    "sequence_append_tokens": [c_void_p, POINTER(c_uint32), c_size_t],
    "step": [POINTER(c_void_p), c_size_t],
    "sequence_tokens": [c_void_p, POINTER(c_uint32), c_size_t, POINTER(c_size_t)],
    "sequence_pending": [c_void_p, POINTER(c_size_t)],
    "sequence_logits": [c_void_p, POINTER(POINTER(c_float)), POINTER(c_size_t)],
    "sequence_sample": [c_void_p, POINTER(c_uint32)],
    "sequence_compression_count": [c_void_p, POINTER(c_size_t)],
    "sequence_get_compression": [c_void_p, c_size_t, POINTER(Compression)],
    "sequence_compression_kept": [c_void_p, c_size_t, c_size_t, POINTER(c_uint32), c_size_t, POINTER(c_size_t)],
    "engine_get_metrics": [c_void_p, POINTER(Metrics)],
    "sequence_get_stats": [c_void_p, POINTER(Stats)],
}


class Library:
    """Functions by their names without the prefix; those that fail raise Error."""

    def __init__(self) -> None:
        default = ROOT / "target/release/libreasoning_rpc.so"
        self.dll = ctypes.CDLL(os.environ.get("RRPC_LIBRARY", str(default)))
        self.dll.rrpc_error_code.argtypes = self.dll.rrpc_error_message.argtypes = [c_void_p]
        self.dll.rrpc_error_free.argtypes = [c_void_p]
        self.dll.rrpc_error_code.restype = c_int32
        self.dll.rrpc_error_message.restype = c_char_p
        for name, arguments in FALLIBLE.items():
            function = getattr(self.dll, f"rrpc_{name}")
            function.argtypes, function.restype = arguments, c_void_p
            setattr(self, name, self._checked(function))
        for name in ["engine_free", "sequence_free"]:
            function = getattr(self.dll, f"rrpc_{name}")
            function.argtypes, function.restype = [c_void_p], None
            setattr(self, name, function)

    def _checked(self, function):
        def call(*arguments) -> None:
            error = function(*arguments)
            if error:
                raised = Error(self.dll.rrpc_error_code(error), self.dll.rrpc_error_message(error).decode())
                self.dll.rrpc_error_free(error)
                raise raised

        return call

    def number(self, function, *arguments, kind: type = c_size_t) -> int:
        """What a function writes to its last argument."""
        value = kind()
        function(*arguments, byref(value))
        return value.value
