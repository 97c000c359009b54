"""Retrieval heads: attention to the token of the needle that is being copied from the context.

Source: Wu et al. 2024 (arXiv 2404.15574). A slot counts once, as in the paper; its code counts
repeats, so that a score can exceed 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from tempo.errors import InputError
from tempo_analysis.studies.heads.detectors.rows import HeadScore, by_layer

RETRIEVAL_THRESHOLD = 0.1
"""Cut of the paper, which 3 to 6 % of the heads of its models exceed."""
SMALLEST_RECALL = 0.5
"""A trial counts only if the answer recalls more than this share of the needle, as in the paper."""

Spots = Float32[np.ndarray, "step layer head slot"]


@dataclass(frozen=True, slots=True)
class RetrievalTrial:
    """One needle in one haystack.

    Attributes:
        hits: Share of the needle's slots that had the largest weight while their token was written;
            in [0, 1]; NaN in a trial that the model failed. Chance is that of random visible slots.
        null: Share of a random span of the same length, apart from the needle and slot 0, whose
            slots ever had the largest weight. The token need not be equal, since a random span
            hardly ever holds the one written and a null of 0 would let every head pass. It has the
            chance value of the hits, so that the two are compared as they are.
        recall: ROUGE-1 recall of the needle in the answer, in [0, 1].
    """

    hits: HeadScore
    null: HeadScore
    recall: float


def retrieval(
    prompt: Int64[np.ndarray, " token"],
    rows: Spots,
    *,
    written: Int64[np.ndarray, " _"],
    needle: tuple[int, int],
    key: Sequence[int],
) -> RetrievalTrial:
    """Retrieval score of every head in one trial of greedy decoding.

    A hit is a slot of the needle with the largest weight of the last row at the step that writes
    its token. A slot hit twice counts once. Of equal weights the first slot is the largest.

    Args:
        prompt: Token ids of the prompt.
        rows: The last row at each step, over prompt and answer so far; slots not yet there are 0.
        written: The token that each step writes.
        needle: First slot of the needle in the prompt, and one past its last slot.
        key: Seed sequence of the random span.

    Raises:
        InputError: The needle is not inside the prompt, or leaves no room for another span.
    """
    start, stop = needle
    _check(prompt, rows, written, start=start, stop=stop)
    n_slots = rows.shape[-1]
    top = rows.argmax(-1)
    slots = np.arange(n_slots)
    looked = top[..., None] == slots
    # slots of the answer hold no needle, so only those of the prompt can hold the written token
    holds = np.zeros((len(written), n_slots), bool)
    holds[:, : len(prompt)] = prompt[None, :] == written[:, None]
    # any over steps: a slot counts once
    hit = (looked & holds[:, None, None, :]).any(0)
    other = _other_span(len(prompt), start=start, length=stop - start, key=key)
    recall = rouge_1_recall(prompt[start:stop], written)
    # multiplied into both numbers: NaN leaves the trial out of every mean
    passed = 1.0 if recall > SMALLEST_RECALL else np.nan
    n = np.full(rows.shape[1], len(written))
    chance = passed * by_layer(
        _chance(holds, len(prompt), start, stop, rows.shape[1]), top.shape[2]
    )
    return RetrievalTrial(
        hits=HeadScore(passed * hit[..., start:stop].mean(-1), chance, n),
        null=HeadScore(
            passed * looked.any(0)[..., other : other + stop - start].mean(-1), chance, n
        ),
        recall=recall,
    )


def rouge_1_recall(
    reference: Int64[np.ndarray, " token"], answer: Int64[np.ndarray, " step"]
) -> float:
    """Share of the tokens of the reference that the answer has, in any order.

    A token counts as often as it stands in both.
    """
    ids, counts = np.unique(reference, return_counts=True)
    # how often the answer has each id; more than in the reference does not count
    answer_counts = np.array([(answer == each).sum() for each in ids])
    return float(np.minimum(counts, answer_counts).sum() / len(reference))


def _chance(
    holds: Bool[np.ndarray, "step slot"], n_prompt: int, start: int, stop: int, n_layers: int
) -> Float64[np.ndarray, " layer"]:
    """Expected share of the needle that is hit by the choice of a random visible slot each step."""
    n_visible = n_prompt + np.arange(len(holds))  # the answer grows by one slot each step
    # a slot stays without a hit if every step that writes its token chooses another slot
    missed = np.where(holds[:, start:stop], 1 - 1 / n_visible[:, None], 1.0).prod(0)
    return np.full(n_layers, 1 - missed.mean())


def _other_span(n_prompt: int, *, start: int, length: int, key: Sequence[int]) -> int:
    """Start of a random span of this length that overlaps neither the needle nor slot 0."""
    # the span ends at or before the needle, or starts after it; slot 0 is often a sink
    before = range(1, start - length + 1)
    after = range(start + length, n_prompt - length + 1)
    starts = [*before, *after]
    if not starts:
        raise InputError(
            f"expected a prompt with room for another span of {length} tokens, got {n_prompt} "
            "tokens; use a longer haystack"
        )
    return int(np.random.default_rng(list(key)).choice(starts))


def _check(
    prompt: Int64[np.ndarray, " token"],
    rows: Spots,
    written: Int64[np.ndarray, " _"],
    *,
    start: int,
    stop: int,
) -> None:
    if not 0 <= start < stop <= len(prompt):
        raise InputError(
            f"expected a needle inside the prompt of {len(prompt)} tokens, got {start} to {stop}; "
            "give its first and one past its last slot"
        )
    if len(rows) != len(written) or rows.shape[-1] < len(prompt) or len(written) == 0:
        raise InputError(
            f"expected one row over {len(prompt)} slots or more for each token written, got "
            f"{len(rows)} rows over {rows.shape[-1]} and {len(written)} tokens; give the last row "
            "of every step"
        )
