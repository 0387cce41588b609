"""Saved sequences of any length, made out of a short one: a long cache without the hours of its prefill.

The format is that of crates/engine/src/state/mod.rs.
"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np

from .schedule import Schedule

MAGIC, VERSION = b"RRPCSEQ\0", 2
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class SavedSequence:
    """A sequence of given tokens, all written."""

    def __init__(self, blob: bytes, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int) -> None:
        version, header_len = struct.unpack_from("<II", blob, 8)
        if blob[:8] != MAGIC or version != VERSION:
            raise ValueError(f"expected a saved sequence of version {VERSION}, found {blob[:8]!r}, {version}")
        start = 16 + header_len
        self.header = json.loads(blob[16:start])
        self.layers, self.kv_heads, self.vocab = layers, kv_heads, vocab
        words = np.frombuffer(blob, "<u4", (len(blob) - 32 - start) // 4, start)
        counts = [self.header[name] for name in ("tokens", "given", "drawn", "seeds")]
        tokens, given, drawn, seeds = counts
        if (given, drawn, self.header["written"]) != (1, 0, tokens):
            raise ValueError("expected one given range, all of it written")
        self.tokens = words[:tokens]
        self.seeds = words[tokens + 2 : tokens + 2 + 3 * seeds]
        at = tokens + 2 + 3 * seeds
        self.logits = words[at : at + vocab]
        policy = self.header["policy"]
        self.policy = None if policy["name"] == "none" else policy
        window = 0 if self.policy is None else policy["window"] * heads * head_dim * layers
        # The ring of a sequence that has generated nothing is empty; numbers of any size do.
        self.window = np.full(window, 0.01, "<f4")
        # One word per layer: nothing says yet how the queries are rotated.
        self.frequencies = np.zeros(layers, "<u4")
        at += vocab + window + layers
        self.width = head_dim * ELEMENT_BYTES[self.header["cache"]]
        entries = np.frombuffer(blob, np.uint8, len(blob) - 32 - start - 4 * at, start + 4 * at)
        entries = entries.reshape(layers * kv_heads, tokens * (2 * self.width + 4))
        planes = entries[:, : 2 * tokens * self.width]
        self.planes = planes.reshape(layers * kv_heads, 2, tokens, self.width)

    def stretched(self, length: int, given: int) -> bytes:
        """A text of `length` tokens, the first `given` of them given, the others generated and compressed so far."""
        generated = length - given
        log: list[int] = []
        positions = np.arange(length, dtype="<u4")
        if self.policy is not None:
            schedule = Schedule(**{name: self.policy[name] for name in ("interval", "window", "ratio", "entries")})
            done = schedule.compressions(generated)
            if done > 0:
                # Of the older generated tokens any may stay.
                recent = given + schedule.due_at(done - 1) - schedule.window
                old = np.linspace(given, recent, schedule.kept(done - 1), endpoint=False).astype("<u4")
                positions = np.concatenate([positions[:given], old, positions[recent:]])
            for index in range(done):
                at = schedule.due_at(index)
                before = schedule.held(at - 1) + 1
                log += [given + before, given + schedule.held(at)] * self.layers
        header = dict(self.header, tokens=length, written=length)
        text = json.dumps(header, separators=(",", ":")).encode()
        hashed = hashlib.sha256()
        parts: list[bytes] = []

        def add(part: bytes) -> None:
            hashed.update(part)
            parts.append(part)

        add(MAGIC + struct.pack("<II", VERSION, len(text)) + text)
        add(np.resize(self.tokens, length).tobytes())
        add(struct.pack("<II", 0, given))
        add(self.seeds.tobytes())
        add(np.array(log, "<u4").tobytes())
        add(self.logits.tobytes())
        add(self.window.tobytes())
        add(self.frequencies.tobytes())
        order = np.arange(len(positions)) % len(self.tokens)
        tail = positions.tobytes()
        for head in self.planes:
            for plane in head:
                add(plane[order].tobytes())
            add(tail)
        return b"".join([*parts, hashed.digest()])
