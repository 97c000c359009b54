"""Runs e16 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.command import asked
from experiments.result import made_by, write_document
from experiments.standard import MODEL
from tempo.prompts.suites import load_suite
from tempo.run.recorder import versions
from tempo_analysis.stats.intervals import Interval, estimate_with_interval
from tempo_analysis.studies.boost.dose_matching import Restoring
from tempo_analysis.studies.boost.dose_response import (
    FORCED,
    FREE,
    Dose,
    Repair,
    at_doses,
    less,
    slope_of,
)
from tempo_analysis.studies.boost.findings import BoostFindings
from tempo_analysis.studies.boost.measure import boost

HERE = Path(__file__).parent
THIRDS = ("first third", "middle third", "last third")
Row = dict[str, Any]


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    kind = "quick_" if quick else ""
    found = boost(
        MODEL,
        list(load_suite("standard"))[:: options[f"{kind}every"]],
        betas=options[f"{kind}betas"],
        threshold=options["threshold"],
        steps=options[f"{kind}steps"],
        seed=options["seed"],
    )
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=found.model,
        versions=versions(),
        trace_hash=found.tokens_hash,
    )
    document = {
        "metrics": list(_metrics(found)),
        "n_sets": {"isolated": found.n_sets},
        "detail": _detail(found),
    }
    write_document(out, document, made=made, prompts=list(found.prompts))


def _metrics(found: BoostFindings) -> Iterator[Row]:
    for dose in (*found.doses, *found.free):
        yield from _doses(dose)
    for first, second in found.pairs():
        yield from _differences(first, second)
    for third in THIRDS[1:]:
        yield from _differences(found.dose(third), found.dose(THIRDS[0]))
    for one in found.restoring:
        yield from _restored(one)
    for one in found.repairs:
        yield from _repaired(one)
    yield from _shares(found)


def _doses(dose: Dose) -> Iterator[Row]:
    for quantity in (*FORCED, *FREE):
        if quantity.name not in dose.values:
            continue
        base = quantity.name if quantity in FORCED else f"free_{quantity.name}"
        changes = at_doses(dose.change(quantity.name))
        values = at_doses(dose.values[quantity.name])
        for beta, value, change in zip(dose.betas, values, changes, strict=True):
            yield _row(f"{base}_change", f"{dose.target} {beta:+g}", change, null=0.0)
            if beta == 0:
                yield _row(base, f"{dose.target} {beta:+g}", value)
        if quantity.slope:
            yield _row(f"{base}_slope", dose.target, slope_of(dose, quantity.name), null=0.0)


def _differences(first: Dose, second: Dose) -> Iterator[Row]:
    for name in first.values:
        rows = less(first, second, name)
        for beta, row in zip(first.betas, rows, strict=True):
            arm = f"{first.target} less {second.target} {beta:+g}"
            yield _row(f"{name}_change", arm, row, null=0.0)


def _restored(one: Restoring) -> Iterator[Row]:
    yield _row("mass_of_alone", one.target, one.loss.exponentiated(), null=1.0)
    yield _row("restoring_dose", one.target, one.measured)
    yield _row("restoring_dose_by_law", one.target, one.law)
    yield _row("restoring_dose_less_law", one.target, one.difference, null=0.0)


def _repaired(one: Repair) -> Iterator[Row]:
    for name in one.values:
        free = name in {quantity.name for quantity in FREE}
        key = f"free_{name}_change" if free else f"{name}_change"
        yield _row(key, f"repaired with {one.name}", one.change(name, seed=0), null=0.0)


def _shares(found: BoostFindings) -> Iterator[Row]:
    """KL of the readers of sets as a share of that of all heads, at a dose of 1."""
    at = found.betas.index(1.0)
    ours, every = (found.dose(name).values["kl"][:, at] for name in ("set readers", "all"))
    yield _row("kl_share_of_all", "set readers +1", estimate_with_interval(ours / every))
    up, down = (found.dose("all").values["kl"][:, place] for place in (-1, 0))
    yield _row("kl_up_less_twice_down", "all", estimate_with_interval(up - 2 * down), null=0.0)


def _row(name: str, arm: str, found: Interval, *, null: float | None = None) -> Row:
    """One number; without data it is null in the file."""
    limits = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
    return {"name": name, "arm": arm, "null": null} | limits


def _detail(found: BoostFindings) -> Mapping[str, Any]:
    return {
        "betas": found.betas,
        "targets": {dose.target: {"n_heads": dose.n_heads} for dose in found.doses},
        "heads": found.heads,
        "refused": found.refused,
        "skipped": found.skipped,
        "control_slots_per_member": found.matched,
        "rounding_nats": found.rounding_nats,
        "no_repair": found.no_repair,
        "repairs": {
            one.name: {"about": one.about, "gap": one.gap, "gap_before": one.gap_before}
            for one in found.repairs
        },
        "restoring": {
            one.target: {
                "pooled": one.pooled,
                "pooled_law": one.pooled_law,
                "n_without": one.n_without,
            }
            for one in found.restoring
        },
        "sentences": found.sentences(),
    }


if __name__ == "__main__":
    asked(main, HERE)
