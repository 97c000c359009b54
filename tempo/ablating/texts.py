"""The prompts of an ablation, encoded, each with the token t that is ablated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tempo.ablating.conditions import PLACE_DRAW
from tempo.causal.forward import check_sequences
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.run.request import PromptInput, check_different, prompts_from
from tempo.trace.run import Prompt


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt, encoded, and its t."""

    prompt: Prompt
    ids: tuple[int, ...]
    at: int


def texts_of(
    model: LanguageModel,
    given: PromptInput | Sequence[PromptInput],
    *,
    reach: int,
    at: str | int,
    seed: int,
) -> tuple[list[Text], list[str]]:
    """Prompts with their t, and the ids of those that are too short for what is asked.

    Args:
        reach: Tokens that t must have before it.
        at: "last", "random", or the number of a token.

    Raises:
        InputError: No prompt has such a token, or its ids are not the model's.
    """
    prompts, own_ids = prompts_from(given)
    texts: list[Text] = []
    longest = 0
    left_out: list[str] = []
    for number, prompt in enumerate(prompts):
        ids = own_ids.get(prompt.id) or tuple(model.encode(prompt.text))
        longest = max(longest, len(ids))
        place = _place(len(ids), at, reach=reach, seed=(seed, PLACE_DRAW, number))
        if place is None:
            left_out.append(prompt.id)
        else:
            texts.append(Text(prompt, ids, place))
    check_different((text.prompt.id, text.ids) for text in texts)
    if not texts:
        raise InputError(
            f"expected a prompt with a token t ({at}) and {reach} before it, as the conditions "
            f"ask, got prompts of at most {longest} tokens; give longer ones, another t, or "
            "conditions that reach less far"
        )
    check_sequences(model, [np.asarray(text.ids, np.int64) for text in texts])
    return texts, left_out


def _place(n_tokens: int, at: str | int, *, reach: int, seed: tuple[int, ...]) -> int | None:
    """The token t of one prompt; None where it has none with enough before it."""
    if isinstance(at, str) and at not in ("last", "random"):
        raise InputError(f"expected last, random or the number of a token for t, got {at!r}")
    if n_tokens <= reach:
        return None
    if at == "last":
        return n_tokens - 1
    if at == "random":
        return int(np.random.default_rng(seed).integers(reach, n_tokens))
    place = int(at)
    return place if reach <= place < n_tokens else None
