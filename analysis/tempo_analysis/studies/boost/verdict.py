"""Sentences about a boost, generated from its intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from tempo_analysis.report.document import number, stated
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE, Interval
from tempo_analysis.studies.boost.dose_matching import Restoring
from tempo_analysis.studies.boost.dose_response import (
    ALL,
    QUANTITIES,
    BoostNumbers,
    Dose,
    Repair,
    at_doses,
    find,
    less,
)

LIMITS = (
    "the control does not match distance, position or content of the slots, nor the share of a row "
    "they had before: parallel members are newer, and share positions"
)
_WORDS = {
    "set_nll": "the next set",
    "top_nll": "the top member of the next set",
    "mixture_kl": "the distance from the exact mixture of the paths",
    "path_nll": "the top path decoded freely, in nats per token of the plain model,",
}


def boost_sentences(found: BoostNumbers) -> list[str]:
    """Every statement that the data allow, in order."""
    return [
        *_counted(found),
        *_moved(found),
        *(line for name in ("set_nll", "mixture_kl") for line in _better(found, name)),
        *_freely(found),
        *(_restored(one) for one in found.restoring),
        *_repaired(found),
        *_pairs(found),
        *_skipped(found),
    ]


def side(found: Interval) -> str:
    """Side of 0 on which an interval lies, or why that is unknown."""
    # With few prompts there is an estimate without limits; the side is then unknown.
    if np.isnan(found.low) or np.isnan(found.high):
        return "no interval" if found.n else "no data"
    # Before the next test, which would report it as undecided.
    if found.low == found.high == 0:
        return "0 in every prompt seen"
    if found.low <= 0 <= found.high:
        return "not told apart from 0"
    return "lower" if found.high < 0 else "higher"


def by_dose(dose: Dose, rows: Sequence[Interval], *, tell: Callable[[Interval], str]) -> str:
    """A list of the doses, each with its interval in words; the dose of 0 is left out."""
    pairs = zip(dose.betas, rows, strict=True)
    return "; ".join(f"{beta:+g}: {tell(row)}" for beta, row in pairs if beta)


def _counted(found: BoostNumbers) -> list[str]:
    lines = [
        f"{len(found.prompts)} prompts with {found.n_sets} sets of two or more members that a step "
        f"follows; doses in nats {', '.join(f'{beta:g}' for beta in found.betas)}"
    ]
    if len(found.prompts) < SMALLEST_SAMPLE:
        lines.append(f"fewer than {SMALLEST_SAMPLE} prompts: estimates without intervals")
    if found.refused:
        n = len(found.refused)
        lines.append(f"prompts without such a set, which have no answer: {n}")
    lines.append(
        "a bias of 0 left every readout as it was, bit for bit; the edited path adding nothing "
        f"moves a prompt by at most {number(found.rounding_nats)} nats"
    )
    return lines


def _moved(found: BoostNumbers) -> list[str]:
    dose = find(found.doses, ALL)
    if dose is None:
        return []
    rows = at_doses(dose.values["kl"], seed=found.seed)
    return [f"in all heads the readouts move, in nats of KL: {by_dose(dose, rows, tell=stated)}"]


def _better(found: BoostNumbers, measure: str) -> list[str]:
    """Change of one measure in all heads, by dose."""
    dose = find(found.doses, ALL)
    if dose is None:
        return []
    rows = at_doses(dose.change(measure), seed=found.seed)
    title = QUANTITIES[measure].title
    return [f"change of {title} in all heads: {by_dose(dose, rows, tell=_with_side)}"]


def _freely(found: BoostNumbers) -> list[str]:
    lines: list[str] = []
    for dose in found.free:
        for measure in ("path_nll", "distinct_2", "branches"):
            rows = at_doses(dose.change(measure), seed=found.seed)
            told = by_dose(dose, rows, tell=_with_side)
            lines.append(
                f"decoded freely, {dose.target}, change of {QUANTITIES[measure].title}: {told}"
            )
    return lines


def _restored(one: Restoring) -> str:
    without = (
        f"; {one.n_without} of {len(one.by_prompt)} prompts have none in these doses and are left "
        "out, so the others need less"
    )
    return (
        f"{one.target}: members get {stated(one.loss.exponentiated())} times the mass they get "
        f"alone; a bias of {stated(one.measured)} nats gives it back"
        f"{without * bool(one.n_without)}; by the odds law {stated(one.law)}; measured less law "
        f"{stated(one.difference)}"
    )


def _repaired(found: BoostNumbers) -> list[str]:
    if not found.repairs:
        return [f"no repair was tried: {found.no_repair}"]
    return [_repair_line(one, found.seed) for one in found.repairs]


def _repair_line(one: Repair, seed: int) -> str:
    told = [
        f"{words} {_with_side(one.change(name, seed=seed))}"
        for name, words in _WORDS.items()
        if name in one.values
    ]
    return (
        f"repaired with {one.name} ({one.about}): heads lie {number(one.gap)} nats from their mass "
        f"alone, {number(one.gap_before)} without; -log p of {'; '.join(told[:2])}; "
        f"{'; '.join(told[2:])}"
    )


def _pairs(found: BoostNumbers) -> list[str]:
    lines: list[str] = []
    for first, second in found.pairs():
        rows = less(first, second, "kl", seed=found.seed)
        told = by_dose(first, rows, tell=_with_side)
        lines.append(f"KL of {first.target} less that of {second.target}: {told}")
        if second.target == "control":
            lines.append(f"{LIMITS}; it has {number(found.matched)} slots for each member")
    return lines


def _skipped(found: BoostNumbers) -> list[str]:
    return [f"no answer for {name}: {why}" for name, why in found.skipped.items()]


def _with_side(found: Interval) -> str:
    return f"{stated(found)}, {side(found)}"
