"""Gives a golden model a tokenizer, a chat template and a stop token, so that text can be tested.

Usage: text_model.py MODEL DEST [none|endless]: without a template, or with one that does not end.

Its 96 tokens: printable ASCII and the bytes of some longer characters, one token each, and three
control tokens. Token 93, which the model's greedy answer contains early, is <|im_end|>; 15 and 16 are
the two bytes of an e with acute accent.
"""

import hashlib
import json
import pathlib
import shutil
import sys

BOS, STOP, START = 92, 93, 94
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ENDLESS = "{% for i in range(100000) %}{% for k in range(100000) %}{% set x = i * k %}{% endfor %}{% endfor %}"
TEMPLATES = {"chat": TEMPLATE, "none": None, "endless": ENDLESS}


def byte_letter(byte: int) -> str:
    """How a byte-level vocabulary writes a byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in plain else chr(256 + [b for b in range(256) if b not in plain].index(byte))


def byte_level_bpe(vocabulary: dict[str, int], special: dict[int, str]) -> dict:
    """tokenizer.json without merges, bytes written as byte_letter writes them."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in special.items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def tokenizer() -> dict:
    special = {BOS: "<|bos|>", STOP: "<|im_end|>", START: "<|im_start|>"}
    fixed = {15: 0xC3, 16: 0xA9}
    letters = iter([0x20, 0x0A, *(b for b in range(0x21, 0x7F) if chr(b) not in "`^~\\")])
    vocabulary = {special[i] if i in special else byte_letter(fixed[i] if i in fixed else next(letters)): i for i in range(96)}
    assert len(vocabulary) == 96
    return byte_level_bpe(vocabulary, special)


def main(model: str, dest: str, template: str = "chat") -> None:
    folder = pathlib.Path(dest)
    shutil.copytree(model, folder)
    added = {"tokenizer.json": json.dumps(tokenizer())}
    if TEMPLATES[template] is not None:
        added["chat_template.jinja"] = TEMPLATES[template]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokens"] = {"bos": BOS, "eos": STOP, "add_bos": True, "stop": [STOP]}
    manifest["generation"] = {"temperature": 0.25, "top_k": 7, "repetition_penalty": 1.5}
    for name, text in added.items():
        (folder / name).write_text(text)
        data = text.encode()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main(*sys.argv[1:])
