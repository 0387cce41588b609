"""Shapes of decoder models, and the bytes that a token reads of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

BLOCK = 32  # weights of one 4-bit block
MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Qwen2's decoder: pre-norm, q/k/v biases, grouped queries, gated SiLU, head tied to the embedding."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int = 40960
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """[out, in] of the matrices of one layer, under their GGUF names."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (q, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
            "ffn_gate": (self.intermediate, self.hidden),
            "ffn_up": (self.intermediate, self.hidden),
            "ffn_down": (self.hidden, self.intermediate),
        }

    @property
    def weights_per_token(self) -> int:
        """Weights that a decode step reads: all layers and the head."""
        layer = sum(rows * width for rows, width in self.matrices.values())
        return self.layers * layer + self.vocab * self.hidden

    def weight_bytes(self, bits: float = 4, scale_bytes: int = 2) -> float:
        """Bytes of those weights in blocks of 32."""
        return self.weights_per_token * (bits / 8 + scale_bytes / BLOCK)

    def entry_bytes(self, element_bytes: float = 2) -> float:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


QWEN2_1_5B = Shape("qwen2-1.5b", 28, 1536, 8960, 12, 2, 128, 151936)


def cut(layers: int, vocab: int | None = None) -> Shape:
    """Qwen2-1.5B with fewer layers and, where it is named, a smaller vocabulary."""
    name = f"{QWEN2_1_5B.name}-{layers}l" + ("" if vocab is None else f"-v{vocab}")
    return replace(QWEN2_1_5B, name=name, layers=layers, vocab=vocab or QWEN2_1_5B.vocab)
