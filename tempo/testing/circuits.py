"""Hand-built models of one layer in which the function of every head is known.

Every token has the same constant coordinate and one of its own, so all have one length and the
norm before the attention scales them alike. Queries and keys are constant vectors in the first
rotary pair, which turns by 1 radian for each position: the score of a slot D positions back is
K cos(D - o), largest at D = o. A head without an offset has queries of 0 and looks evenly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.testing.tiny import VOCAB_SIZE, character_tokenizer

LONGEST = 19
"""Tokens of a prompt on which a head gives its one slot everything, to float32: beyond, D = 19 is
almost three turns."""

# Two rotary pairs; scores use the first, which turns by 1 radian for each position.
_HEAD_DIM = 4
# Scores of other slots are then at least 79 nats lower, which a float32 softmax rounds away.
_SHARPNESS = 2000.0


@dataclass(frozen=True, slots=True)
class PlantedHead:
    """What one head does.

    Attributes:
        offset: How many positions back it looks, with all its weight; evenly where None. A token
            without a position so far back looks where the score is largest.
        writes: Length of the vector it writes for each value; each head has its own direction.
    """

    offset: int | None
    writes: float = 1.0


def previous_and_self() -> LanguageModel:
    """L0H0 copies from the token before, L0H1 from the token itself, at right angles."""
    return circuit([PlantedHead(1), PlantedHead(0)])


def uniform_head() -> LanguageModel:
    """L0H0 looks evenly at equal values; L0H1 writes nothing."""
    return circuit([PlantedHead(None), PlantedHead(None, writes=0.0)])


@torch.no_grad()
def circuit(heads: Sequence[PlantedHead], *, seed: int = 0) -> LanguageModel:
    """A Llama of one layer with these heads; its MLP writes nothing.

    Args:
        seed: Seed of the unembedding, the only random weights.

    Raises:
        InputError: No heads, or an offset that is not sharp within `LONGEST` tokens.
    """
    if not heads or any(not 0 <= (head.offset or 0) < LONGEST for head in heads):
        raise InputError(
            f"expected heads that look 0 to {LONGEST - 1} positions back, got {list(heads)}; plant "
            "others"
        )
    tokenizer = character_tokenizer(adds_bos=False)
    # Rounded up to a multiple of the heads, which Llama demands. One coordinate is constant, one is
    # of each token, and one of each head, for what it writes.
    width = -(-(1 + VOCAB_SIZE + len(heads)) // len(heads)) * len(heads)
    hf: Any = LlamaForCausalLM(_config(width, len(heads), tokenizer.eos_token_id)).eval()
    for name, parameter in hf.named_parameters():
        # All else is zero, so that nothing but the planted weights acts.
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    embedding = hf.get_input_embeddings().weight
    # The constant coordinate from which all queries and keys are made.
    embedding[:, 0] = 1.0
    embedding[:, 1 : 1 + VOCAB_SIZE] = torch.eye(VOCAB_SIZE)
    # two coordinates of 1 among `width`: what the norm makes of the constant one
    constant = math.sqrt(width / 2)
    attention = hf.model.layers[0].self_attn
    for number, head in enumerate(heads):
        _plant(attention, head, number, constant)
    generator = torch.Generator().manual_seed(seed)
    hf.lm_head.weight.normal_(0.0, 1 / math.sqrt(width), generator=generator)
    hf.config.name_or_path = "planted-circuit"
    return load_model((hf, tokenizer), dtype="float32")


def _config(width: int, n_heads: int, eos: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=_HEAD_DIM,
        max_position_embeddings=64,
        # So small that the norm is exact: the planted scale counts on it.
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=None,
    )


def _plant(attention: Any, head: PlantedHead, number: int, constant: float) -> None:
    """Write one head into the projections; all read the constant coordinate only."""
    first = number * _HEAD_DIM
    q, k, v, o = (getattr(attention, f"{each}_proj").weight for each in "qkvo")
    k[first, 0] = 1 / constant
    if head.offset is not None:
        # the halves of a head are the two coordinates of its rotary pairs
        size = _SHARPNESS * math.sqrt(_HEAD_DIM) / constant
        q[first, 0] = size * math.cos(head.offset)
        q[first + _HEAD_DIM // 2, 0] = -size * math.sin(head.offset)
    v[first, 0] = 1 / constant
    o[1 + VOCAB_SIZE + number, first] = head.writes
