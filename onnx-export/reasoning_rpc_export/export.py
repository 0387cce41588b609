"""One export: from a checkpoint to a finished folder, or to nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoint import Checkpoint
from .decoder import build_decoder
from .errors import ExportError
from .gguf_file import open_gguf
from .huggingface import open_huggingface
from .manifest import is_earlier_export, write_manifest
from .weights_file import WeightsFile

GRAPH_FILE, WEIGHTS_FILE = "model.onnx", "model.onnx.data"
TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"


def open_checkpoint(source: Path) -> Checkpoint:
    if source.is_dir():
        return open_huggingface(source)
    if source.is_file():
        return open_gguf(source)
    raise ExportError(f"{source}: no such file or folder")


def export(checkpoint: Checkpoint, dest: Path, weights: str, flavour: str, advance: Callable[[int], None]) -> None:
    """Writes model.onnx, model.onnx.data, tokenizer.json, chat_template.jinja and manifest.json to `dest`."""
    with replacing(dest) as folder:
        with WeightsFile(folder / WEIGHTS_FILE) as file:
            model = build_decoder(checkpoint, weights, flavour, file, advance)
            files = {WEIGHTS_FILE: file.close()}
        contents = {
            GRAPH_FILE: model.SerializeToString(deterministic=True),
            TOKENIZER_FILE: checkpoint.tokenizer,
            TEMPLATE_FILE: None if checkpoint.chat_template is None else checkpoint.chat_template.encode("utf-8"),
        }
        for name, content in contents.items():
            if content is not None:
                (folder / name).write_bytes(content)
                files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_manifest(folder, checkpoint, weights, flavour, dict(sorted(files.items())))


def check_dest(dest: Path, source: Path) -> None:
    """A destination is absent, an empty folder or an earlier export; replacing it must not take the source along."""
    if source.resolve().is_relative_to(dest.resolve()):
        raise ExportError(f"{dest}: holds the source, {source}")
    if not os.path.lexists(dest):
        return
    if not dest.is_dir():
        raise ExportError(f"{dest}: exists and is not a folder")
    if any(dest.iterdir()) and not is_earlier_export(dest):
        raise ExportError(f"{dest}: is not empty and not an earlier export; choose another folder")


@contextmanager
def replacing(dest: Path) -> Iterator[Path]:
    """A new folder beside `dest` that takes its place when the block ends well and is removed when it does not."""
    dest = dest.resolve()
    created = [parent for parent in dest.parents if not parent.exists()]  # innermost first
    dest.parent.mkdir(parents=True, exist_ok=True)
    partial = dest.with_name(f".{dest.name}.partial-{os.getpid()}")
    previous = dest.with_name(f".{dest.name}.previous-{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        if dest.exists():
            dest.rename(previous)
        try:
            partial.rename(dest)
        except BaseException:
            if previous.exists():
                previous.rename(dest)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            parent.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)
