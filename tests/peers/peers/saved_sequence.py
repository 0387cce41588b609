"""Saved sequences of any length, made out of a short one: a long cache without the hours of its prefill.

The format is that of crates/engine/src/state/mod.rs.
"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np

from .schedule import Schedule

MAGIC, VERSION = b"RRPCSEQ\0", 6
# Of an element, and of the scale of a key or value.
ELEMENT_BYTES = {"fp32": (4, 0), "fp16": (2, 0), "bf16": (2, 0), "int8": (1, 4)}


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
        at += vocab
        # The ring of a sequence that has generated nothing is empty; numbers of any size do. Nor have its queries been
        # rotated: a layer has 0 frequencies.
        compressed = self.header["policy"]["name"] == "rpc"
        window = self.header["policy"]["window"] * heads * head_dim * layers if compressed else 0
        self.window = np.full(window, 0.01, "<f4")
        self.frequencies = np.zeros(layers, "<u4")
        at += window + layers
        if words[at - layers : at].any():
            raise ValueError("expected no frequencies, found some")
        element, scale = ELEMENT_BYTES[self.header["cache"]]
        # Keys, values, their scales if they have any; positions are left out.
        self.widths = [width for width in (head_dim * element, head_dim * element, scale, scale) if width > 0]
        entries = np.frombuffer(blob, np.uint8, len(blob) - 32 - start - 4 * at, start + 4 * at)
        entries = entries.reshape(layers * kv_heads, tokens * (sum(self.widths) + 4))
        self.planes = []
        for head in entries:
            ends = np.cumsum([tokens * width for width in self.widths])
            planes = zip(np.split(head, ends), self.widths)
            self.planes.append([plane.reshape(tokens, width) for plane, width in planes])

    def stretched(self, length: int, given: int) -> bytes:
        """A text of `length` tokens, the first `given` of them given, the others generated and compressed so far."""
        generated = length - given
        log: list[int] = []
        positions = np.arange(length, dtype="<u4")
        rpc = self.header["policy"]
        if rpc["name"] == "rpc":
            schedule = Schedule(**{name: rpc[name] for name in ("interval", "window", "ratio", "entries")})
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
