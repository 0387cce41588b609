"""Builds tokenizer.json (Hugging Face tokenizers) from the vocabulary and merges inside a GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from .errors import ExportError
from .settings import Settings


class TokenType(IntEnum):
    """tokenizer.ggml.token_type; the other types are ordinary vocabulary."""

    CONTROL = 3  # only ever produced by a template or a host, never by the text of a message
    USER_DEFINED = 4  # matched in text before everything else
    UNUSED = 5


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# The pattern of GPT-4's tokenizer with `digits` in the place of its digit groups.
def _words(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging. A GGUF only names it; the steps are those of the models' own tokenizer.json."""

    steps: tuple[dict[str, Any], ...]
    normalizer: str | None = None
    ignore_merges: bool = False  # a piece that is in the vocabulary is a token, whatever the merges say
    add_bos: bool = False  # where the GGUF does not say


_LLAMA3 = PreTokenizer((_split(_words(r"\p{N}{1,3}")), byte_level(False)), ignore_merges=True, add_bos=True)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((byte_level(True),)),
    "smollm": PreTokenizer(({"type": "Digits", "individual_digits": True}, byte_level(True))),
    "qwen2": PreTokenizer((_split(_words(r"\p{N}")), byte_level(False)), normalizer="NFC"),
    "deepseek-r1-qwen": PreTokenizer((_split(_words(r"\p{N}")), byte_level(False)), normalizer="NFC"),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
}


def find_pre_tokenizer(metadata: Settings) -> PreTokenizer:
    name = metadata.text("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ExportError(f"{metadata.origin}: pre-tokenizer {name!r} is not supported (supported: {known})")
    return PRE_TOKENIZERS[name]


def adds_bos_by_default(metadata: Settings) -> bool:
    return find_pre_tokenizer(metadata).add_bos


def build_tokenizer(metadata: Settings, vocab_size: int) -> dict[str, Any]:
    """The content of tokenizer.json. It adds no token of its own: the manifest says whether a text begins with BOS."""
    model = metadata.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise ExportError(f"{metadata.origin}: tokenizer model {model!r} is not supported (gpt2, byte-level BPE, is)")
    pre_tokenizer = find_pre_tokenizer(metadata)
    tokens = _list(metadata, "tokenizer.ggml.tokens", str)
    types = _list(metadata, "tokenizer.ggml.token_type", int)
    if not len(tokens) == len(types) <= vocab_size:
        sizes = f"{len(tokens)} tokens and {len(types)} token types"
        raise ExportError(f"{metadata.origin}: {sizes} do not fit a vocabulary of {vocab_size}")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise ExportError(f"{metadata.origin}: token {twice!r} appears twice in tokenizer.ggml.tokens")
    added = [
        added_token(index, token, special=kind == TokenType.CONTROL)
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    merges = [_merge(metadata, merge, vocab) for merge in _list(metadata, "tokenizer.ggml.merges", str)]
    return byte_level_bpe(vocab, merges, added, pre_tokenizer)


def byte_level_bpe(
    vocab: dict[str, int], merges: list[list[str]], added: list[dict[str, Any]], pre_tokenizer: PreTokenizer
) -> dict[str, Any]:
    """The content of tokenizer.json with these tokens; the vocabulary has bytes as GPT-2's letters."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": pre_tokenizer.normalizer} if pre_tokenizer.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizer.steps)},
        "post_processor": None,
        "decoder": byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _list(metadata: Settings, key: str, kind: type) -> list:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise metadata.error(key, f"a list of {kind.__name__}", values)
    return values


def added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": special}


def _merge(metadata: Settings, merge: str, vocab: dict[str, int]) -> list[str]:
    """`left right` -> [left, right]; the engine's tokenizer refuses pieces that are not in the vocabulary."""
    pair = merge.split(" ")
    if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
        raise ExportError(f"{metadata.origin}: merge {merge!r} does not join two tokens to a third")
    return pair
