"""Makes one set of weights readable by every engine.

python -m peers.models FOLDER [SHAPE...]: SHAPE is layers[:vocab], such as 8 or 8:43392; default: those of the benchmark.
Writes SHAPE.gguf, and beside it SHAPE-ours, SHAPE-openvino, SHAPE-onnx-fp32 and SHAPE-onnx-int8. What is there stays,
but for SHAPE-ours when the exporter is newer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from . import shapes
from .shapes import Shape

ROOT = Path(__file__).resolve().parents[3]
EXPORTER = ROOT / ".venv/bin/reasoning-rpc-export"
MAIN = shapes.cut(8)
# Weights, head included, and cache keep the proportion that they have at 28 layers.
PROPORTIONAL = shapes.cut(8, MAIN.vocab * 8 // shapes.QWEN2_1_5B.layers // 32 * 32)
SMOLLM2 = "smollm2-135m"


def paths(folder: Path, name: str) -> dict[str, Path]:
    """Where the models called `name` lie, by the kind that an engine reads."""
    kinds = {kind: folder / f"{name}-{kind}" for kind in ("ours", "openvino", "onnx-fp32", "onnx-int8")}
    return {"gguf": folder / f"{name}.gguf", **kinds}


def export(source: Path, dest: Path) -> None:
    """With our exporter, unless what is there is as new as it."""
    code = (ROOT / "onnx-export/reasoning_rpc_export").glob("*.py")
    newest = max(file.stat().st_mtime for file in [source, *code])
    manifest = dest / "manifest.json"
    if not manifest.exists() or manifest.stat().st_mtime < newest:
        subprocess.run([EXPORTER, source, dest, "--weights", "int4"], check=True)


def make(shape: Shape, folder: Path, kinds: tuple[str, ...] = ("ours", "openvino", "onnx-fp32", "onnx-int8")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    to = paths(folder, shape.name)
    if not to["gguf"].exists():
        from . import random_gguf

        random_gguf.write(shape, to["gguf"])
    for kind in kinds:
        if kind == "ours":
            export(to["gguf"], to[kind])
        elif kind == "openvino" and not (to[kind] / "openvino_model.bin").exists():
            from . import openvino_ir

            openvino_ir.write(to["gguf"], to[kind])
        elif kind.startswith("onnx-") and not (to[kind] / "genai_config.json").exists():
            from . import onnx_graph

            onnx_graph.write(to["gguf"], to[kind], kind.removeprefix("onnx-"))


def make_smollm2(gguf: Path, folder: Path) -> None:
    """The real model: as it is for llama.cpp, by our exporter, and by OpenVINO GenAI's own reader of GGUF files."""
    folder.mkdir(parents=True, exist_ok=True)
    to = paths(folder, SMOLLM2)
    if not to["gguf"].exists():
        to["gguf"].symlink_to(gguf.resolve())
    export(to["gguf"], to["ours"])
    if not (to["openvino"] / "openvino_model.bin").exists():
        import openvino_genai

        partial = to["openvino"].with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / "source.gguf").symlink_to(gguf.resolve())
        # It writes its model beside the file.
        openvino_genai.LLMPipeline(str(partial / "source.gguf"), "CPU", enable_save_ov_model=True)
        partial.rename(to["openvino"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="*")
    arguments = parser.parse_args()
    chosen = [shapes.cut(*map(int, text.split(":"))) for text in arguments.shapes]
    for shape in chosen or [MAIN, PROPORTIONAL]:
        make(shape, arguments.folder)
        print(f"{shape.name}: {shape.weight_bytes() / 1e6:.0f} MB of weights in a token")


if __name__ == "__main__":
    main()
