"""The consumer through ctypes. Usage: program.py LIBRARY MODEL_FOLDER. Prints the tokens of a greedy answer."""

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

ABI_VERSION = 0


class SequenceOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *[(name, c_uint32) for name in "policy interval window ratio aggregation pooling kernel record_kept".split()],
        *[(name, c_float) for name in "temperature top_p min_p repetition_penalty".split()],
        ("top_k", c_uint32),
        ("reserved", c_uint32),
        ("seed", c_uint64),
    ]


class GenerateOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("max_tokens", c_uint64),
        ("stop", c_void_p),
        ("stop_count", c_size_t),
        ("ignore_eos", c_uint32),
        ("reserved", c_uint32),
    ]


library = ctypes.CDLL(sys.argv[1])
library.rrpc_abi_version.restype = c_uint32
assert library.rrpc_abi_version() == ABI_VERSION
library.rrpc_error_message.restype = c_char_p
library.rrpc_error_message.argtypes = [c_void_p]


def call(name: str, *arguments) -> None:
    function = getattr(library, name)
    function.restype = c_void_p
    error = function(*arguments)
    if error:
        sys.exit(library.rrpc_error_message(error).decode())


engine, sequence = c_void_p(), c_void_p()
call("rrpc_engine_open", sys.argv[2].encode(), None, byref(engine))
options = SequenceOptions()
call("rrpc_sequence_options_init", engine, byref(options), c_size_t(ctypes.sizeof(options)))
options.temperature, options.repetition_penalty = 0, 1
call("rrpc_sequence_create", engine, byref(options), byref(sequence))
prompt = (c_uint32 * 12)(63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8)
call("rrpc_sequence_append_tokens", sequence, prompt, c_size_t(len(prompt)))
generate = GenerateOptions()
call("rrpc_generate_options_init", byref(generate), c_size_t(ctypes.sizeof(generate)))
generate.max_tokens = 8
call("rrpc_generate", sequence, byref(generate), None, None, None)
count = c_size_t()
tokens = (c_uint32 * 20)()
call("rrpc_sequence_tokens", sequence, tokens, c_size_t(20), byref(count))
print("tokens:", *tokens[len(prompt) : count.value])
library.rrpc_sequence_free.argtypes = library.rrpc_engine_free.argtypes = [c_void_p]
library.rrpc_sequence_free(sequence)
library.rrpc_engine_free(engine)
