"""Decodes a golden model step by step through the C ABI and writes down what came of it.

Usage: golden_run.py MODEL_FOLDER EXPECTED_JSON full|rpc OUT.npz
"""

import ctypes
import json
import pathlib
import sys
from ctypes import POINTER, byref, c_float, c_size_t, c_uint32, c_void_p

import numpy as np
from rrpc import ROOT, Compression, EngineInfo, EngineOptions, Library, SequenceOptions, Stats

DTYPE_F32 = 1
POLICY = {"full": 0, "rpc": 1}
AGGREGATION = {"all": 0, "group": 1}
POOLING = {"avgpool": 0, "maxpool": 1}


def run(model: str, expected: dict, mode: str) -> tuple[dict, np.ndarray]:
    library = Library()
    options = EngineOptions()
    library.engine_options_init(options, ctypes.sizeof(options))
    options.cache_dtype = DTYPE_F32
    options.block_entries = 16
    options.onnxruntime = str(ROOT / "third_party/onnxruntime/libonnxruntime.so").encode()
    engine = c_void_p()
    library.engine_open(model.encode(), options, byref(engine))
    info = EngineInfo()
    library.engine_get_info(engine, info)

    options = SequenceOptions()
    library.sequence_options_init(engine, options, ctypes.sizeof(options))
    options.policy = POLICY[mode]
    options.interval, options.window, options.ratio = expected["P"], expected["R"], expected["c"]
    options.aggregation = AGGREGATION[expected["aggregation"]]
    options.pooling = POOLING[expected["pooling"]]
    options.kernel = expected["kernel_size"]
    options.temperature = 0
    options.repetition_penalty = 1
    options.record_kept = 1
    sequence = c_void_p()
    library.sequence_create(engine, options, byref(sequence))
    prompt = expected["prompt"]
    library.sequence_append_tokens(sequence, (c_uint32 * len(prompt))(*prompt), len(prompt))

    count = expected["max_new_tokens"]
    tokens, logits = [], np.empty((count, info.vocab), np.float32)
    pointer, size = POINTER(c_float)(), c_size_t()
    for step in range(count):
        while library.number(library.sequence_pending, sequence):
            library.step(byref(sequence), 1)
        library.sequence_logits(sequence, byref(pointer), byref(size))
        logits[step] = np.ctypeslib.as_array(pointer, (size.value,))
        tokens.append(library.number(library.sequence_sample, sequence, kind=c_uint32))

    compressions = []
    for index in range(library.number(library.sequence_compression_count, sequence)):
        record = Compression()
        library.sequence_get_compression(sequence, index, record)
        sets = []
        for one in range(record.kept_sets):
            length = library.number(library.sequence_compression_kept, sequence, index, one, None, 0)
            kept = (c_uint32 * length)()
            library.sequence_compression_kept(sequence, index, one, kept, length, byref(size))
            sets.append(list(kept))
        plain = {name: getattr(record, name) for name, _ in Compression._fields_}
        compressions.append({**plain, "kept": sets})
    stats = Stats()
    library.sequence_get_stats(sequence, stats)
    library.sequence_free(sequence)
    library.engine_free(engine)
    found = {
        "tokens": tokens,
        "compressions": compressions,
        "simd": info.simd.decode(),
        "stats": {name: getattr(stats, name) for name, _ in Stats._fields_},
    }
    return found, logits


if __name__ == "__main__":
    model, expected, mode, out = sys.argv[1:]
    found, logits = run(model, json.loads(pathlib.Path(expected).read_text()), mode)
    np.savez(out, found=json.dumps(found), logits=logits)
