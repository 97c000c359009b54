"""All measures of one prompt, computed in one reading of its traces."""

from collections.abc import Mapping
from dataclasses import dataclass

from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import Arms, inherited_labels
from tempo_analysis.parallel.entropy import PromptEntropy, prompt_entropy
from tempo_analysis.parallel.head_kinds import PromptHeads, prompt_heads
from tempo_analysis.parallel.observation import ObservedTrace, observe
from tempo_analysis.parallel.ratio import PairedRatio, paired_ratio
from tempo_analysis.parallel.sibling_mass import PromptSiblings, prompt_siblings
from tempo_analysis.parallel.widths import PromptWidths, prompt_widths

Axes = tuple[tuple[int, ...], tuple[int, ...]]
"""Layer numbers and head numbers."""


@dataclass(frozen=True, slots=True)
class PromptMeasures:
    """One prompt under one arm.

    Attributes:
        axes: Layer numbers and head numbers of the trace.
        ratio: The ratio beside its null.
        heads: None where the trace keeps no rows.
    """

    axes: Axes
    ratio: PairedRatio
    entropy: PromptEntropy
    siblings: PromptSiblings
    heads: PromptHeads | None
    widths: PromptWidths


def measure_prompt(traces: Mapping[str, Trace], arms: Arms) -> dict[str, PromptMeasures]:
    """Measure the arms of one prompt; the greedy run is read once and labelled for each of them."""
    greedy = traces.get(arms.greedy) if arms.greedy else None
    seen = observe(greedy) if greedy else None
    return {
        # Reading rows is the costly part: the greedy trace is read once, also when it is the arm.
        arm: _measure_arm(trace, seen if seen and trace is greedy else observe(trace), greedy, seen)
        for arm, trace in traces.items()
    }


def _measure_arm(
    trace: Trace, observed: ObservedTrace, greedy: Trace | None, seen: ObservedTrace | None
) -> PromptMeasures:
    entropy = prompt_entropy(observed)
    return PromptMeasures(
        axes=(observed.layers, observed.heads),
        ratio=_paired(trace, observed, greedy, seen),
        entropy=entropy,
        siblings=prompt_siblings(observed),
        # Group masses do not tell which slot a head attends to.
        heads=prompt_heads(observed, entropy) if _keeps_rows(trace) else None,
        widths=prompt_widths(trace),
    )


def _paired(
    trace: Trace, observed: ObservedTrace, greedy: Trace | None, seen: ObservedTrace | None
) -> PairedRatio:
    """The ratio and its null; without rows in the greedy run there is no null."""
    # The greedy run beside itself would be a null equal to the arm by construction.
    if greedy is None or trace is greedy or not _keeps_rows(greedy):
        return paired_ratio(observed)
    return paired_ratio(observed, seen, inherited_labels(trace.slots, greedy.slots))


def _keeps_rows(trace: Trace) -> bool:
    """Whether the level of a trace holds its rows, not only sums over them."""
    return trace.level != "reduced"
