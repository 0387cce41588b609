"""What a checkpoint is once it was read, and the checks that both kinds share."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import ExportError
from .families import ModelConfig
from .tensors import StoredTensor, row_bytes


@dataclass(frozen=True)
class Tokens:
    """Token ids that generation needs; `stop` is ascending and without duplicates, `eos` is the one of chat templates."""

    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    stop: tuple[int, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    kind: str  # "huggingface" or "gguf"
    name: str  # name of the folder or file, without its path
    config: ModelConfig
    tensors: dict[str, StoredTensor]  # by Hugging Face name, exactly those of config.tensors()
    tokenizer: bytes | None = None  # tokenizer.json
    chat_template: str | None = None
    tokens: Tokens = Tokens()
    generation: dict = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(tensor.weights for tensor in self.tensors.values())


def check_config(config: ModelConfig) -> None:
    """Relations between dimensions that no single setting shows."""
    if config.num_heads % config.num_kv_heads:
        raise ExportError(f"{config.num_heads} query heads are not a multiple of {config.num_kv_heads} KV heads")
    if config.head_dim % 2:
        raise ExportError(f"head_dim {config.head_dim} is odd: rotary positions need pairs")


def check_tensors(
    config: ModelConfig, found: dict[str, StoredTensor], ignored: tuple[str, ...]
) -> dict[str, StoredTensor]:
    """The tensors of the model, in the order of config.tensors(), each with the right shape and a readable encoding.

    A tensor that the model does not know is an error too, unless its name ends in one of `ignored`: weights that the
    graph leaves out would change its results silently.
    """
    tensors = {}
    for name, shape in config.tensors():
        tensor = found.get(name)
        if tensor is None:
            raise ExportError(f"tensor {name} is missing")
        if tensor.shape != shape:
            raise ExportError(f"tensor {tensor.name}: expected shape {list(shape)}, found {list(tensor.shape)}")
        row_bytes(tensor.encoding, tensor.width, tensor.name)
        tensors[name] = tensor
    for name in found:
        if name not in tensors and not name.endswith(ignored):
            raise ExportError(f"tensor {name} is not part of the {config.family.name} architecture as configured")
    return tensors


def check_tokens(tokens: Tokens, vocab_size: int) -> None:
    for name, token in [("bos", tokens.bos), *(("stop", token) for token in tokens.stop), ("eos", tokens.eos)]:
        if token is not None and not 0 <= token < vocab_size:
            raise ExportError(f"{name} token {token} is outside the vocabulary of {vocab_size}")
