"""What does a set do to the attention its members get? The exact split of a paired run."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.arms import Arms
from analysis.bands import band
from analysis.decomposition import PromptSplit, Split, Terms, decomposition, prompt_split
from analysis.ratio import Q_BELOW, Sink
from analysis.refusal import Refusal
from analysis.statistics import SEED, Curve, Interval
from tempo.errors import LevelError, NoParallelSetsError, TwinError
from tempo.trace.run import Run
from tempo.trace.trace import Trace

SINKS: tuple[Sink, Sink] = ("without", "with")
ALONE = 1.0
"""Every factor of a token that stands alone."""

UNPAIRED = (
    "the run holds no member of a set decoded without its siblings; decode again with --paired, "
    "and with alone on, to split down-weighting from dilution"
)
_BY_LAYER = ("drift", "competition", "predicted")


@dataclass(frozen=True, slots=True)
class Part:
    """The split of some sets, as factors of what a member gets alone.

    Attributes:
        factor: Geometric mean over prompts of each part of the split, with its interval.
        log_by_prompt: The values behind it, in nats; NaN where a prompt has no data.
        by_layer: Drift, competition and its prediction within each layer; limits hold at all
            layers at once.
        drift_by_head: Each head's own drift, in nats.
        q_value_by_head: Is it 0? Adjusted over layers x heads; NaN where not tested.
    """

    factor: Terms[Interval]
    log_by_prompt: Terms[Float64[np.ndarray, " prompt"]]
    by_layer: Mapping[str, Curve]
    drift_by_head: Float64[np.ndarray, "layer head"]
    q_value_by_head: Float64[np.ndarray, "layer head"]

    def heads_off_alone(self) -> tuple[int, int, int]:
        """Heads with a drift below 0 and above it at q < 0.05, and heads tested."""
        off = self.q_value_by_head < Q_BELOW
        tested = ~np.isnan(self.q_value_by_head)
        down = off & (self.drift_by_head < 0)
        return int(down.sum()), int((off & ~down).sum()), int(tested.sum())


@dataclass(frozen=True, slots=True)
class SetEffect:
    """What siblings change, over prompts; see `analysis.decomposition.Decomposition`.

    Attributes:
        arm: The arm whose sets were split.
        reference: Whether scores are relative to the prompt "with" or "without" slot 0.
        first: First sets of width >= 2 only, where alone is a plain sequential run.
        all_sets: All of them.
        n_sets: Sets split, over all prompts.
        n_members: Their members.
        n_left_out: Sets left out because a twin is missing.
    """

    arm: str
    reference: Sink
    first: Part
    all_sets: Part
    n_sets: int
    n_members: int
    n_left_out: int


def set_effects(
    run: Run, arms: Arms, *, seed: int = SEED
) -> tuple[dict[Sink, SetEffect], list[Refusal]]:
    """The split without and with slot 0 in the reference; reads the run prompt by prompt.

    Empty, with a refusal, where the run was not paired, where no set could be split, where a twin
    differs by more than its siblings, and where the traces hold no rows. A twin that was not
    decoded to its end counts as missing.
    """
    if arms.alone is None:
        return {}, [Refusal("split", ", ".join(arms.parallel or arms.free), UNPAIRED)]
    try:
        splits = [
            _both_splits(run.traces[prompt.id, arms.alone], run.alone(prompt.id))
            for prompt in run.prompts
            if (prompt.id, arms.alone) in run.traces
        ]
        return {
            sink: _set_effect(arms.alone, [one[sink] for one in splits], seed) for sink in SINKS
        }, []
    except (TwinError, LevelError, NoParallelSetsError) as error:
        return {}, [Refusal("split", arms.alone, str(error))]


def _both_splits(in_set: Trace, alone: Mapping[tuple[int, int], Trace]) -> dict[Sink, PromptSplit]:
    whole = {key: twin for key, twin in alone.items() if twin.header.stopped != "running"}
    return {sink: prompt_split(in_set, whole, reference=sink) for sink in SINKS}


def _set_effect(arm: str, prompts: list[PromptSplit], seed: int) -> SetEffect:
    found = decomposition(prompts, seed=seed)
    x = np.array(found.layers, np.int64)

    def part(split: Split) -> Part:
        curves = {name: band(x, getattr(split.by_layer, name), seed=seed) for name in _BY_LAYER}
        return Part(
            factor=split.interval.map(Interval.exponentiated),
            log_by_prompt=split.by_prompt,
            by_layer={name: curve.exponentiated() for name, curve in curves.items()},
            drift_by_head=split.drift_by_head,
            q_value_by_head=split.q_value_by_head,
        )

    return SetEffect(
        arm=arm,
        reference=found.reference,
        first=part(found.first),
        all_sets=part(found.all_sets),
        n_sets=found.n_sets,
        n_members=found.n_members,
        n_left_out=found.n_left_out,
    )
