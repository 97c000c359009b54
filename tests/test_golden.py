"""Goldens: traces and result documents of a seeded tiny llama, made again and compared whole.

Text, keys, order and whole numbers are compared exactly, other numbers within 1e-6 (absolute and
relative), wherever they stand; on a processor that rounds otherwise, within 2e-5. What a change of
the code is meant to change is remade by

    python -m tests.test_golden

which says what differs from before; nothing else writes to `tests/golden/`.
"""

import json
import random
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import tempo
from tests.command_line import call, model_folder
from tests.goldens import GOLDEN, PROCESSOR, differences, kept, rounding_of_processor, same

LEVELS = ("weights", "qk", "reduced")
NAMES = ("traces", "compare", "heads", "concepts", "ablate", "boost", "follow")
PROMPTS = ("The cat", "a dog is", "on the mat", "ran in", "is a", "The dog ran", "cats", "the")
PROMPTS += ("why?",)  # nine, since one has no parallel set and eight make an interval
WORDS = "the a cat dog mat hill sat ran over on. in, is was; why? tree: house and or but not"
DECODE = ("--steps", 4, "--threshold", 0.05, "--max-width", 4, "--eos", "ignore")
SHOWN = 20
_savefig = Figure.savefig


# --- what is made


def ask(command: str, *arguments: object) -> None:
    """Run a command of `tempo` on the tiny model, as a user would."""
    result = call(command, *arguments, "--model", model_folder())
    assert result.exit_code == 0, result.stderr


def make(name: str, folder: Path) -> None:
    """Everything that one command writes, asked in the smallest way that leaves little out."""
    out = ("--out", folder)
    if name == "traces":
        make_traces(folder)
    elif name == "compare":
        ask(name, *PROMPTS, "--arms", "isolated,visible,greedy", "--steps", 3, *out)
    elif name == "heads":
        corpus = folder.with_name("corpus.txt")  # Python's own help differs by its version
        corpus.write_text(" ".join(random.Random(0).choices(WORDS.split(), k=3000)))
        ask(name, "--sequences", 8, "--length", 32, "--corpus", corpus, *out)
    elif name == "concepts":
        pairs = folder.with_name("cats.jsonl")
        pairs.write_text("".join(map(pair_line, range(16))))
        ask(name, pairs, "--top", 2, "--permutations", 200, *out)
    elif name == "ablate":  # redundancy takes values out, so that is covered too
        asked = ("--heads", "L1H2", "--conditions", "head", "--sweep", 1)
        ask(name, "The cat sat", "A dog ran", *asked, *out)
    elif name == "boost":
        asked = ("--betas=-2,2", "--targets", "all,set readers,control", "--steps", 3)
        ask(name, *(f"the cat {i} sat on" for i in range(8)), *asked, "--threshold", 0.05, *out)
    else:
        run = folder.with_name("run")
        ask("generate", "A dog ran", *DECODE, "--out", run)
        ask(name, run, *out)


def pair_line(number: int) -> str:
    sides = {"positive": f"the cat {number} ran now", "negative": f"a dog {number} sat now"}
    return json.dumps({"id": f"p{number}", **sides}) + "\n"


def make_traces(folder: Path) -> None:
    """One run for each level, and of each a document of what its trace says."""
    folder.mkdir()
    for level in LEVELS:
        run = folder.with_name(level)
        ask("generate", "The cat sat", *DECODE, "--capture", level, "--out", run)
        (header,) = run.glob("traces/*/*/trace.json")
        found = {"trace.json": json.loads(header.read_text())} | told(tempo.open_trace(run))
        (folder / f"{level}.json").write_text(json.dumps(found))


def told(trace: Any) -> dict[str, Any]:
    """What a trace says of itself: every slot, and the rows of the prompt and of one step."""
    columns = ("token", "position", "step", "rank", "probability")
    return {
        "text": trace.text(),
        "lattice": trace.lattice(),
        "slots": {name: getattr(trace.slots, name).tolist() for name in columns},
        "tensors": {name: list(trace.tensors[name].shape) for name in sorted(trace.tensors)},
        "steps": {str(step): step_told(trace, step) for step in (0, 2)},
    }


def step_told(trace: Any, step: int) -> dict[str, Any]:
    """The rows of one step, its readout and its choices; of the prompt only the last query."""
    some = slice(-1, None) if step == 0 else slice(None)
    readout = trace.readout(step)
    found = {
        "members": trace.members(step),
        "margins": np.array(trace.margins(step)),
        "visible": trace.visible(step)[:, some].astype(int),
        "logsumexp": trace.logsumexp(step)[..., some],
        "entropy": trace.entropy_nats(step)[..., some],
        "group_mass": trace.group_mass(step)[:, :, some],
        "readout_token": readout.token[:8],
        "readout_log_probability": readout.log_probability[:8],
        "readout_rest": np.array([readout.tail_mass, readout.entropy_nats]),
    }
    if trace.level != "reduced":
        found["attention"] = trace.attention(step)[:, :, some]
    return {name: values.tolist() for name, values in found.items()}


def made(name: str, folder: Path) -> dict[str, str]:
    """The documents, reports and tables that are written to a new folder, as they are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _save_blank)
        make(name, folder)
    files = [*folder.glob("*.json"), *folder.glob("*.md"), *folder.glob("tables/*.csv")]
    return {str(each.relative_to(folder)): kept(each, model_folder()) for each in sorted(files)}


def _save_blank(_: Figure, *arguments: Any, **options: Any) -> None:
    """Stands in for drawing, which takes half the time and is no number."""
    _savefig(Figure(figsize=(1, 1)), *arguments, **options)


def goldens(name: str) -> dict[str, str]:
    folder = GOLDEN / name
    files = [each for each in sorted(folder.rglob("*")) if each.is_file()]
    return {str(each.relative_to(folder)): each.read_text() for each in files}


def all_differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Where two sets of files differ, whole files first."""
    lone = [f"{path}: only among the goldens" for path in old if path not in new]
    lone += [f"{path}: not among the goldens" for path in new if path not in old]
    both = [path for path in old if path in new]
    return lone + [each for path in both for each in differences(path, old[path], new[path])]


# --- the tests


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_again_is_the_golden(name: str, tmp_path: Path):
    found = all_differences(goldens(name), made(name, tmp_path / name))
    assert not found, "\n".join([f"{len(found)} differences", *found[:SHOWN]])


@pytest.mark.parametrize(
    ("golden", "text", "n_wrong"),
    [
        ('{"a": [1.0, null]}', '{"a": [1.0000005, null]}', 0),
        ('{"a": [NaN, "x 0.5"]}', '{"a": [NaN, "x 0.5"]}', 0),
        ('{"a": 1.0}', '{"a": 1.001}', 1),
        ('{"a": 1.0}', '{"a": 1}', 1),
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 1),
        ('{"a": [1]}', '{"a": [1, 2]}', 1),
        ('{"a": "x 7"}', '{"a": "x 8"}', 1),
        ('{"a": "x 0.5"}', '{"a": "x 0.75"}', 1),
        ('{"a": []}', '{"a": {}}', 1),
    ],
)
def test_the_comparison_sees_what_differs(golden: str, text: str, n_wrong: int):
    assert len(differences("a.json", golden, text)) == n_wrong
    assert same(golden, golden)


def remake() -> None:
    """Make every golden anew in place of those that are kept, and say what differs."""
    torch.set_num_threads(1)  # as in the tests
    for name in NAMES:
        with TemporaryDirectory() as scratch:
            files = made(name, Path(scratch) / name)
        found = all_differences(goldens(name), files)
        sys.stdout.write("\n".join([f"{name}: {len(found)} differences", *found[:SHOWN]]) + "\n")
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        for path, text in files.items():
            (GOLDEN / name / path).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name / path).write_text(text)
    PROCESSOR.write_text(rounding_of_processor() + "\n")


if __name__ == "__main__":
    remake()
