"""Effect of silencing a head on the choice between two names: S-inhibition measured causally.

A head that inhibits the repeated subject acts on the queries of name movers, the heads that then
copy the indirect object (Wang et al. 2022, arXiv 2211.00593, section 3). So its removal lowers the
logit of IO against S, and the attention of name movers to IO.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64

from tempo.causal.attribution import direct_attribution
from tempo.causal.eager_rows import (
    BATCH,
    EAGER_ATTENTION,
    EagerNotes,
    batches_of,
    check_sequences,
    eager_rows,
)
from tempo.causal.silence import (
    HeadIndex,
    Means,
    ablated,
    heads_by_layer,
    kept_layer_outputs,
    resumed,
)
from tempo.errors import InputError, ModelError
from tempo.models.language_model import LanguageModel, attention_as
from tempo.prompts.names import NamePrompt

# Wang et al. name three name movers in GPT-2 small.
N_MOVERS = 3
_FOR_MOVERS = 16


@dataclass(frozen=True, slots=True, eq=False)
class InhibitionEffect:
    """Effects of silencing heads one at a time; prompts in the order given.

    Attributes:
        heads: The silenced heads, in the order given.
        base: Logit of IO less logit of S at the end of each prompt, in nats.
        drop: Loss of `base` without each head; positive where the head helps IO.
        movers: The heads whose attention to IO is watched.
        io_attention: Mean weight of the movers from the end to IO.
        io_drop: Loss of that weight without each head.
    """

    heads: tuple[HeadIndex, ...]
    base: Float32[np.ndarray, " prompt"]
    drop: Float32[np.ndarray, "head prompt"]
    movers: tuple[HeadIndex, ...]
    io_attention: Float32[np.ndarray, " prompt"]
    io_drop: Float32[np.ndarray, "head prompt"]


def inhibition_effect(
    model: LanguageModel,
    prompts: Sequence[NamePrompt],
    heads: Sequence[HeadIndex],
    *,
    movers: Sequence[HeadIndex],
    batch: int = BATCH,
    means: Means | None = None,
) -> InhibitionEffect:
    """Silence each head and look at the end of every prompt.

    Args:
        movers: Heads that copy IO, from `name_movers` or by hand.
        means: Hold a silent head at these instead of at zero.

    Raises:
        InputError: No heads, no movers, or heads that are not there.
        ModelError: A layer has no plain output projection.
    """
    if not heads or not movers:
        raise InputError(
            f"expected heads and name movers, got {len(heads)} and {len(movers)}; name some"
        )
    heads_by_layer(model, [*heads, *movers])
    check_sequences(model, [prompt.ids for prompt in prompts])
    # By length, so that batches are full; results are put back in the order given.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids))
    found: list[np.ndarray] = []
    start = 0
    for ids in batches_of([prompts[number].ids for number in order], batch):
        group = [prompts[number] for number in order[start : start + len(ids)]]
        found.append(_effects(model, group, heads, movers=movers, means=means))
        start += len(ids)
    sorted_values = np.concatenate(found, axis=-1)
    values = np.empty_like(sorted_values)
    values[..., order] = sorted_values
    base, without = values[0], values[1:]
    return InhibitionEffect(
        heads=tuple(heads),
        base=base[0],
        drop=base[0] - without[:, 0],
        movers=tuple(movers),
        io_attention=base[1],
        io_drop=base[1] - without[:, 1],
    )


def name_movers(
    model: LanguageModel, prompts: Sequence[NamePrompt], *, n: int = N_MOVERS
) -> tuple[HeadIndex, ...]:
    """The name movers: up to n heads that attend to IO and write most towards it.

    A name mover must attend more to IO than to both occurrences of S, from the end and on average
    over up to 16 prompts: a head that attends to S and lowers it helps IO too, but copies nothing.

    Raises:
        InputError: No prompts.
        ModelError: No head is one, or the model's logits cannot be taken apart.
    """
    if not prompts or n < 1:
        raise InputError(f"expected prompts and movers, got {len(prompts)} and {n}; give some")
    few = prompts[:_FOR_MOVERS]
    effects = direct_name_effects(model, few).mean(0)
    paid = np.zeros((2, *effects.shape))
    for prompt, one in zip(few, eager_rows(model, [each.ids for each in few]), strict=True):
        row = one.weights[:, :, prompt.end]
        paid += np.stack([row[..., prompt.io], row[..., prompt.s] + row[..., prompt.s2]])
    # -inf sorts last, so only heads that look at IO more than at S can be among the best
    effects[(paid[0] <= paid[1]) | (effects <= 0)] = -np.inf
    best = [place for place in np.argsort(-effects, axis=None)[:n] if effects.flat[place] > 0]
    if not best:
        raise ModelError(
            f"expected a head of {model.name} that looks at the indirect object and writes it, got "
            "none; leave out the causal S-inhibition score"
        )
    return tuple((int(place) // model.n_heads, int(place) % model.n_heads) for place in best)


def direct_name_effects(
    model: LanguageModel, prompts: Sequence[NamePrompt]
) -> Float64[np.ndarray, "prompt layer head"]:
    """Direct effect of each head on the logit of IO minus that of S, at the end of each prompt."""
    return np.stack(
        [
            direct_attribution(
                model, prompt.ids, token=prompt.io_token, against=prompt.s_token
            ).heads
            for prompt in prompts
        ]
    )


@torch.inference_mode()
def _effects(
    model: LanguageModel,
    prompts: Sequence[NamePrompt],
    heads: Sequence[HeadIndex],
    *,
    movers: Sequence[HeadIndex],
    means: Means | None,
) -> Float32[np.ndarray, "run 2 prompt"]:
    """Logit difference and movers' attention: of the model as it is, then without each head."""
    with attention_as(model.hf, EAGER_ATTENTION):
        with kept_layer_outputs(model) as kept:
            found = [_looked(model, prompts, movers)]
        # layers that are not run again pay what they paid
        paid = found[0][1:]
        for head in heads:
            with ExitStack() as stack:
                stack.enter_context(resumed(model, head[0], kept))
                stack.enter_context(ablated(model, [head], means=means))
                found.append(_looked(model, prompts, movers, before=paid))
    return np.stack([np.stack([one[0], one[1:].mean(0)]) for one in found])


def _looked(
    model: LanguageModel,
    prompts: Sequence[NamePrompt],
    movers: Sequence[HeadIndex],
    *,
    before: np.ndarray | None = None,
) -> Float32[np.ndarray, "row prompt"]:
    """Logit difference and, below it, each mover's weight on IO."""
    notes = EagerNotes(None)
    ids = np.stack([prompt.ids for prompt in prompts])
    out = model.hf(
        input_ids=torch.from_numpy(ids).to(model.device),
        use_cache=False,
        # Only the end is read, and the head is the largest product of a small model.
        logits_to_keep=1,
        tempo_eager=notes,
    )
    last = out.logits[:, -1].float().cpu().numpy()
    pairs = [(prompt.io_token, prompt.s_token) for prompt in prompts]
    # A difference of logits equals that of log-probabilities: the normaliser cancels.
    difference = [row[io] - row[s] for row, (io, s) in zip(last, pairs, strict=True)]
    places = [(number, prompt.end, prompt.io) for number, prompt in enumerate(prompts)]
    paid: list[list[float]] = []
    for number, (layer, head) in enumerate(movers):
        if layer in notes.weights:
            weights = notes.weights[layer]
            paid.append([float(weights[place, head, end, io]) for place, end, io in places])
        else:
            assert before is not None
            paid.append(before[number].tolist())
    return np.array([difference, *paid], np.float32)
