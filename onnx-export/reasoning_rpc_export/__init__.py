"""Writes decoder checkpoints (Hugging Face folders, GGUF files) as ONNX graphs for reasoning-rpc."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("reasoning-rpc-export")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"
