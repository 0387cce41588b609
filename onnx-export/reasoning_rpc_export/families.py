"""The model families that can be exported: one row each, and what a row means.

A family is a decoder with pre-norm blocks `x += o(attention(norm(x))); x += down(silu(gate(norm(x))) * up(norm(x)))`,
RMS norms, rotary positions over whole heads and grouped query heads. What differs between families is in the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import ExportError
from .rope import Rope

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = ("self_attn.o_proj",)
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Family:
    name: str  # `architecture` in the manifest
    model_type: str  # Hugging Face config.json
    model_class: str  # Hugging Face config.json, `architectures`
    gguf_architecture: str  # GGUF general.architecture
    # Projections with a bias: always, or where the named setting of config.json is true (in a GGUF: where it is there).
    biases: dict[tuple[str, ...], bool | str] = field(default_factory=dict)
    gguf_interleaved_qk: bool = False  # GGUF holds q and k rows in interleaved rotary order
    # Settings of config.json that the family has, with the only values implemented here; None is an absent setting.
    implemented: dict[str, tuple] = field(default_factory=dict)


FAMILIES = (
    Family(
        name="llama",
        model_type="llama",
        model_class="LlamaForCausalLM",
        gguf_architecture="llama",
        biases={QKV: "attention_bias", OUTPUT: "attention_bias", MLP: "mlp_bias"},
        gguf_interleaved_qk=True,
    ),
    Family(
        name="qwen2",
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        gguf_architecture="qwen2",
        biases={QKV: True},
        implemented={"use_sliding_window": (False, None)},
    ),
)


def find_family(column: str, value: object) -> Family:
    for family in FAMILIES:
        if getattr(family, column) == value:
            return family
    known = ", ".join(getattr(family, column) for family in FAMILIES)
    raise ExportError(f"model family {value!r} is not supported (supported: {known})")


@dataclass(frozen=True)
class ModelConfig:
    """What the graph is built from, whatever file it came from."""

    family: Family
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope: Rope
    tied_head: bool
    biased: frozenset[str]  # projections with a bias, e.g. self_attn.q_proj

    def projections(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one block: name -> [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(Hugging Face name, shape) of every tensor of the model."""
        hidden = self.hidden_size
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        yield "model.norm.weight", (hidden,)
        if not self.tied_head:
            yield "lm_head.weight", (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,)
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            for name, shape in self.projections().items():
                yield f"{prefix}{name}.weight", shape
                if name in self.biased:
                    yield f"{prefix}{name}.bias", shape[:1]
