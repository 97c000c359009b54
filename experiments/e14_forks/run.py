"""Runs e14 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.command import asked
from experiments.e14_forks.probes import UNKNOWN, Probe, known, read_probes
from experiments.e14_forks.survival import ForkResult, detail, fork_result, metrics
from experiments.merging import exact_paths, merges
from experiments.result import hash_of, made_by, write_document
from experiments.soft_tokens import soft_log_probabilities
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.policy.slots import SlotTable
from tempo.run.recorder import facts_of_model, versions

HERE = Path(__file__).parent
Sequences = list[tuple[str, str, SlotTable]]


def measured(
    model: LanguageModel, probes: Sequence[Probe]
) -> tuple[list[ForkResult], list[str], Sequences]:
    """Results of the probes that the model knows, ids of the others, and what was decoded."""
    paths = exact_paths(model, [probe.fork for probe in probes])
    keep = known(probes, paths)
    unknown = [probe.fork.id for probe, kept in zip(probes, keep, strict=True) if not kept]
    both = [pair for pair, kept in zip(zip(probes, paths, strict=True), keep, strict=True) if kept]
    readouts, sequences = merges(model, [one.fork for one, _ in both], [one for _, one in both])
    results: list[ForkResult] = []
    for (probe, exact), found in zip(both, readouts, strict=True):
        slots = [*probe.fork.prompt, *probe.fork.follow]
        no_set = soft_log_probabilities(model, slots, last=1).astype(np.float64)
        results.append(fork_result(probe, exact, found, no_set))
    return results, unknown, sequences


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    model = load_model(options["model"])
    probes, dropped = read_probes(HERE / "probes.jsonl", model)
    n_written = len(probes) + len(dropped)
    probes = probes[:: len(probes) // options["quick_tried"]] if quick else probes
    results: list[ForkResult] = []
    sequences: Sequences = []
    for start in range(0, len(probes), options["batch"]):
        some, unknown, tables = measured(model, probes[start : start + options["batch"]])
        results += some
        sequences += tables
        dropped |= dict.fromkeys(unknown, UNKNOWN)
    results = results[: options["quick_probes"]] if quick else results
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=facts_of_model(model),
        versions=versions(),
        trace_hash=hash_of(sequences),
    )
    document = {
        "metrics": metrics(results),
        "probes": {"written": n_written, "kept": len(results), "dropped": dropped},
        "dropped_because": dict(Counter(dropped.values())),
        "n_sets": {arm: len(results) for arm in dict.fromkeys(arm for _, arm, _ in sequences)},
        "detail": detail(results),
    }
    write_document(out, document, made=made, prompts=[one.probe.fork.id for one in results])


if __name__ == "__main__":
    asked(main, HERE)
