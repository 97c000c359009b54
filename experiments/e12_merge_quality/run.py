"""Runs e12 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from experiments.command import asked
from experiments.e12_merge_quality.quality import Quality, detail, metrics, quality_of
from experiments.merging import exact_forks, merges
from experiments.result import hash_of, made_by, write_document
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.policy.slots import SlotTable
from tempo.prompts.suites import load_suite
from tempo.run.recorder import facts_of_model, versions
from tempo.trace.run import Prompt

HERE = Path(__file__).parent
Sequences = list[tuple[str, str, SlotTable]]


def measured(
    model: LanguageModel, prompts: Sequence[Prompt], *, width: int, depth: int
) -> tuple[list[Quality], Sequences]:
    """The quality of every merge of sets of one width, for a batch of prompts."""
    ids = {prompt.id: tuple(model.encode(prompt.text)) for prompt in prompts}
    forks, paths, filtered = exact_forks(model, ids, width=width, depth=depth)
    readouts, sequences = merges(model, forks, paths)
    found = zip(paths, readouts, filtered, strict=True)
    return [quality_of(*one) for one in found], sequences


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    model = load_model(options["model"])
    prompts = load_suite(options["suite"])[: options["quick_prompts"] if quick else None]
    found: dict[int, list[Quality]] = {width: [] for width in options["widths"]}
    sequences: Sequences = []
    for width, whole in found.items():
        for start in range(0, len(prompts), options["batch"]):
            some = prompts[start : start + options["batch"]]
            qualities, tables = measured(model, some, width=width, depth=options["depth"])
            whole.extend(qualities)
            sequences.extend(tables)
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=facts_of_model(model),
        versions=versions(),
        trace_hash=hash_of(sequences),
    )
    document = {"metrics": metrics(found), "n_sets": n_sets(sequences), "detail": detail(found)}
    write_document(out, document, made=made, prompts=[prompt.id for prompt in prompts])


def n_sets(sequences: Sequences) -> dict[str, int]:
    """Sets of width >= 2 under each merge."""
    arms = dict.fromkeys(arm for _, arm, _ in sequences)
    return {arm: sum(int((t.rank == 1).sum()) for _, a, t in sequences if a == arm) for arm in arms}


if __name__ == "__main__":
    asked(main, HERE)
