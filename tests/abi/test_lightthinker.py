"""The policy `lightthinker` beside a decoder in float64 that knows no cache: the whole text at once, under a mask.

Models: models/golden, or RRPC_MODELS with golden/ in it. Random delimiters and gists, SEED= replays them.
"""

import ctypes
import json
import os
import random
from ctypes import POINTER, byref, c_float, c_size_t, c_uint32, c_void_p

import numpy as np
import pytest
from decoder import logits_of, visible
from rrpc import ROOT, Compression, EngineOptions, Error, Library, SequenceOptions, Stats
from test_golden import GOLDEN, LOGIT_TOLERANCE, MODELS

SEED = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
POLICY_LIGHTTHINKER, NO_TOKEN, DTYPE_F32 = 11, 2**32 - 1, 1


class Host:
    """An engine, and sequences with the policy."""

    def __init__(self, name: str) -> None:
        self.library = Library()
        options = EngineOptions()
        self.library.engine_options_init(options, ctypes.sizeof(options))
        options.cache_dtype, options.block_entries = DTYPE_F32, 16
        options.onnxruntime = str(ROOT / "third_party/onnxruntime/libonnxruntime.so").encode()
        self.engine = c_void_p()
        self.library.engine_open(str(MODELS / f"{name}-cached").encode(), options, byref(self.engine))

    def begin(self, delimiters: list[int], gists: list[int], resume: int, prompt: list[int]) -> c_void_p:
        options = SequenceOptions()
        self.library.sequence_options_init(self.engine, options, ctypes.sizeof(options))
        options.policy, options.temperature, options.repetition_penalty = POLICY_LIGHTTHINKER, 0, 1
        options.delimiters = (c_uint32 * len(delimiters))(*delimiters)
        options.gists = (c_uint32 * len(gists))(*gists)
        options.num_delimiters, options.num_gists, options.resume = len(delimiters), len(gists), resume
        sequence = c_void_p()
        self.library.sequence_create(self.engine, options, byref(sequence))
        self.library.sequence_append_tokens(sequence, (c_uint32 * len(prompt))(*prompt), len(prompt))
        return sequence

    def logits(self, sequence: c_void_p) -> np.ndarray:
        while self.library.number(self.library.sequence_pending, sequence):
            self.library.step(byref(sequence), 1)
        pointer, size = POINTER(c_float)(), c_size_t()
        self.library.sequence_logits(sequence, byref(pointer), byref(size))
        return np.ctypeslib.as_array(pointer, (size.value,)).copy()

    def tokens(self, sequence: c_void_p) -> list[int]:
        size = c_size_t()
        self.library.sequence_tokens(sequence, None, 0, byref(size))
        tokens = (c_uint32 * size.value)()
        self.library.sequence_tokens(sequence, tokens, size.value, byref(size))
        return list(tokens)


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("name", ["llama_p48_c8", "qwen2_p32"])
def test_thoughts_are_gone_once_their_gists_are_written(name: str, resumes: bool) -> None:
    print(f"SEED={SEED}")
    generator = random.Random(SEED)
    host = Host(name)
    golden = json.loads((GOLDEN / name / "expected.json").read_text())
    # Ids that the model writes often enough end thoughts, those that it does not write sum them up.
    written = golden["results"]["full"]["tokens"]
    delimiters = generator.sample(sorted(set(written)), 12)
    others = sorted(set(range(golden_vocab(name))) - set(delimiters))
    *gists, resume = generator.sample(others, 4)
    following = [*gists, resume] if resumes else gists
    prompt = golden["prompt"]
    sequence = host.begin(delimiters, gists, resume if resumes else NO_TOKEN, prompt)

    text, found, places = list(prompt), [], []
    for _ in range(150):
        found.append(host.logits(sequence))
        places.append(len(text) - 1)
        token = host.library.number(host.library.sequence_sample, sequence, kind=c_uint32)
        assert token == int(found[-1].argmax())
        text += [token, *following] if token in delimiters else [token]
    host.logits(sequence)
    assert host.tokens(sequence) == text

    seen = visible(text, len(prompt), set(delimiters), len(gists), len(following))
    expected = logits_of(name, text, seen)[places]
    worst = np.abs(np.array(found) - expected).max()
    print(f"largest logit error {worst:.2e}")
    assert worst <= LOGIT_TOLERANCE
    # Every entry that the last token does not see is gone.
    ends = [at for at in range(len(prompt), len(text)) if text[at] in delimiters]
    count = host.library.number(host.library.sequence_compression_count, sequence)
    layers = json.loads((GOLDEN / name / "config.json").read_text())["num_hidden_layers"]
    assert len(ends) > 3 and count == layers * len(ends)
    record = Compression()
    host.library.sequence_get_compression(sequence, count - layers - 1, record)
    before, end = ends[-3:-1]
    assert record.len_before - record.len_after == end + 1 - (before + 1 + len(following))
    assert record.len_after == seen[end + 1 + len(gists)].sum() - 1
    stats = Stats()
    host.library.sequence_get_stats(sequence, stats)
    assert stats.compressions == len(ends) and stats.cache_peak_bytes < stats.cache_uncompressed_bytes
    host.library.sequence_free(sequence)
    host.library.engine_free(host.engine)


def golden_vocab(name: str) -> int:
    return json.loads((GOLDEN / name / "config.json").read_text())["vocab_size"]


def test_options_that_cannot_be_are_refused() -> None:
    host = Host("llama_p48_c8")
    for delimiters, gists, resume, expected in [
        ([], [1], NO_TOKEN, "delimiters: expected token ids, found none"),
        ([1], [], NO_TOKEN, "gists: expected token ids, found none"),
        ([1], [2, 1], NO_TOKEN, "gists: expected ids that are no delimiters, found 1"),
        ([1], [2], 1, "gists: expected ids that are no delimiters, found 1"),
        ([1], [2, 96], NO_TOKEN, "expected ids of 0 to 95, found 96"),
    ]:
        with pytest.raises(Error, match=expected):
            host.begin(delimiters, gists, resume, [1, 2, 3])
    host.library.engine_free(host.engine)
