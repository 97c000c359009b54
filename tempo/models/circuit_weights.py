"""The weights of a decoder's attention circuits as numpy arrays, head by head.

Convention: a map is stored output first, so `value[kv] @ x` reads a residual stream x and
`out[head] @ z` writes one. Query head h reads KV head h // (H / KV); only `kv_head` computes it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from tempo.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A normalisation: `gain * (x - mean) / sqrt(variance + eps) + shift`, or by the RMS.

    Attributes:
        kind: "layer" subtracts the mean, "rms" does not.
        gain: Factor on each channel, also where a family stores another number (1 + w in Gemma).
        shift: What is added; None where nothing is.
    """

    kind: str
    gain: Float32[np.ndarray, " hidden"]
    shift: Float32[np.ndarray, " hidden"] | None
    eps: float

    def applied(self, x: Float[np.ndarray, "*batch hidden"]) -> Float[np.ndarray, "*batch hidden"]:
        """The normalised vectors."""
        centred = x - x.mean(-1, keepdims=True) if self.kind == "layer" else x
        size = np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        scaled = centred / size * self.gain
        return scaled if self.shift is None else scaled + self.shift

    def scaled(self, x: Float[np.ndarray, "*batch hidden"]) -> Float[np.ndarray, "*batch hidden"]:
        """As `applied`, without the shift: the part of it that depends on x."""
        # Needed for sums of parts: the shift is constant and would be counted once for each part.
        return self.applied(x) - (0.0 if self.shift is None else self.shift)


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer's attention.

    Attributes:
        input_norm: Before the attention; None where it reads the stream as it is (OLMo-2).
        branch_norm: Of what the attention writes, before it joins the stream; usually None.
        clip: Bound on queries, keys and values (OLMo); None where there is none.
        normalises: Whether queries and keys are normalised behind these weights.
    """

    query: Float32[np.ndarray, "head channel hidden"]
    key: Float32[np.ndarray, "kv_head channel hidden"]
    value: Float32[np.ndarray, "kv_head channel hidden"]
    out: Float32[np.ndarray, "head hidden channel"]
    query_bias: Float32[np.ndarray, "head channel"] | None
    key_bias: Float32[np.ndarray, "kv_head channel"] | None
    value_bias: Float32[np.ndarray, "kv_head channel"] | None
    out_bias: Float32[np.ndarray, " hidden"] | None
    input_norm: Norm | None
    branch_norm: Norm | None
    clip: float | None
    normalises: bool


@dataclass(frozen=True, slots=True, eq=False)
class CircuitWeights:
    """The attention weights of all layers, embedding, unembedding and final norm.

    Attributes:
        embedding: Rows as they enter the first layer, scaled where the family scales them.
        unembedding: Rows of the language-model head.
        softcap: Bound on the logits (Gemma-2); None where there is none.
        is_parallel: Whether attention and MLP of a layer read the same stream (GPT-NeoX).
        is_tied: Whether head and embedding are one matrix.
    """

    layers: tuple[LayerWeights, ...]
    embedding: Float32[np.ndarray, "vocab hidden"]
    unembedding: Float32[np.ndarray, "vocab hidden"]
    final_norm: Norm
    softcap: float | None
    is_parallel: bool
    is_tied: bool

    @property
    def n_heads(self) -> int:
        """Query heads of a layer."""
        return len(self.layers[0].query)

    @property
    def n_kv_heads(self) -> int:
        """KV heads of a layer."""
        return len(self.layers[0].value)

    def value_of(self, layer: int, head: int) -> Float32[np.ndarray, "channel hidden"]:
        """W_V as a query head reads it."""
        return self.layers[layer].value[kv_head(head, self.n_heads, self.n_kv_heads)]

    def key_of(self, layer: int, head: int) -> Float32[np.ndarray, "channel hidden"]:
        """W_K as a query head reads it."""
        return self.layers[layer].key[kv_head(head, self.n_heads, self.n_kv_heads)]

    def left_out(self) -> tuple[str, ...]:
        """Operations of this model that a product of these weights leaves out."""
        facts = (
            ("biases", any(_has_bias(layer) for layer in self.layers)),
            ("clipping of values", any(layer.clip is not None for layer in self.layers)),
            (
                "normalisation of queries and keys",
                any(layer.normalises for layer in self.layers),
            ),
            ("soft cap of the logits", self.softcap is not None),
            (
                "the size of what a branch norm lets through",
                any(layer.branch_norm is not None for layer in self.layers),
            ),
        )
        return tuple(name for name, is_so in facts if is_so)


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedEmbedding:
    """Tokens as they enter the first layer, and the output of its MLP for each token alone.

    Attributes:
        embedding: As it enters the first layer.
        mlp: What the first MLP would add if the first attention added nothing.
    """

    tokens: tuple[int, ...]
    embedding: Float32[np.ndarray, "token hidden"]
    mlp: Float32[np.ndarray, "token hidden"]


def kv_head(head: int, n_heads: int, n_kv_heads: int) -> int:
    """The KV head that a query head reads.

    Raises:
        InputError: There is no such head, or the heads do not divide evenly.
    """
    if not 0 <= head < n_heads or n_heads % n_kv_heads:
        raise InputError(
            f"expected a head from 0 to {n_heads - 1} in {n_kv_heads} even groups, got {head}; "
            "check the head"
        )
    # grouped-query attention: neighbouring query heads share a KV head
    return head // (n_heads // n_kv_heads)


def _has_bias(layer: LayerWeights) -> bool:
    return any(
        bias is not None
        for bias in (layer.query_bias, layer.key_bias, layer.value_bias, layer.out_bias)
    )
