"""Goldens: traces and result documents of a seeded tiny llama, made again and compared whole.

Text, keys, order and whole numbers are compared exactly, other numbers within 1e-6 (absolute and
relative), wherever they stand. What a change of the code is meant to change is remade by

    python -m tests.test_golden

whose difference in `tests/golden/` is then to be read, like any other.
"""

import csv
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import tempo
from tests.command_line import call, model_folder

GOLDEN = Path(__file__).parent / "golden"
LEVELS = ("weights", "qk", "reduced")
STUDIES = ("compare", "heads", "concepts", "ablate", "boost", "follow")
TOLERANCE = 1e-6
DIGITS = 8
"""Of a float in a golden: more would be rounding, and bytes."""

# what differs between machines and runs, though nothing is wrong: by key in a document, by line
# in a table or a report. The hashes are of float32 bits, which differ between processors.
UNSTABLE_KEYS = {"versions", "command", "fingerprint", "configuration_hash", "sha256"}
UNSTABLE_LINES = re.compile(r"^(\| )?([\w-]+ version|command|\S*fingerprint|configuration hash)\b")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
INNERMOST = re.compile(r"\[[^\[\]{}]*\]|\{[^\[\]{}]*\}")

PROMPTS = (
    "The cat",
    "a dog is",
    "on the mat",
    "ran in",
    "is a",
    "The dog ran",
    "cats",
    "the",
    "why?",
)
PAIRS = [(f"the cat {i} ran now", f"a dog {i} sat now") for i in range(16)]
DECODE = ("--steps", 4, "--threshold", 0.05, "--max-width", 4, "--eos", "ignore")

Leaf = tuple[str, Any]


# --- what is made


def make_traces(folder: Path) -> None:
    """One run for each level, and of each a document of what its trace says."""
    for level in LEVELS:
        run = folder / "runs" / level
        ask("generate", "The cat sat", *DECODE, "--capture", level, "--out", run)
        (header,) = run.glob("traces/*/*/trace.json")
        found = {"trace.json": json.loads(header.read_text())} | told(tempo.open_trace(run))
        (folder / f"{level}.json").write_text(json.dumps(found, indent=1))
    shutil.rmtree(folder / "runs")


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


def make_study(name: str, folder: Path) -> None:
    """Everything that a study writes, asked in the smallest way that leaves no part out."""
    out = ("--out", folder)
    if name == "compare":
        ask(name, *PROMPTS, "--arms", "isolated,visible,greedy", "--steps", 3, *out)
    elif name == "heads":
        ask(name, "--sequences", 8, "--length", 32, *out)
    elif name == "concepts":
        with TemporaryDirectory() as scratch:
            pairs = Path(scratch) / "cats.jsonl"
            rows = [{"id": f"p{i}", "positive": a, "negative": b} for i, (a, b) in enumerate(PAIRS)]
            pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
            ask(name, pairs, "--top", 2, "--permutations", 200, *out)
    elif name == "ablate":
        asked = ("--heads", "L1H2", "--conditions", "head,value:1", "--sweep", 1)
        ask(name, "The cat sat", "A dog ran", *asked, *out)
    elif name == "boost":
        asked = ("--betas=-2,2", "--targets", "all,set readers,other heads,control")
        asked += ("--groups", "mine=L0H1,L1H0", "--threshold", 0.05, "--steps", 3)
        ask(name, *(f"the cat {i} sat on" for i in range(8)), *asked, *out)
    elif name == "follow":
        with TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            ask("generate", "A dog ran", *DECODE, "--out", run)
            ask(name, run, *out)


def ask(command: str, *arguments: object) -> None:
    """Run a command of `tempo` on the tiny model, as a user would."""
    model = ("--model", model_folder())
    result = call(command, *arguments, *model)
    assert result.exit_code == 0, result.stderr


def made(name: str, folder: Path) -> dict[str, str]:
    """The files of a study, or of the traces, by their paths, as they are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _save_blank)
        make_traces(folder) if name == "traces" else make_study(name, folder)
    files = [*folder.glob("*.json"), *folder.glob("*.md"), *folder.glob("tables/*.csv")]
    return {str(file.relative_to(folder)): kept(file) for file in sorted(files)}


_savefig = Figure.savefig


def _save_blank(_: Figure, *arguments: Any, **options: Any) -> None:
    """Stands in for drawing, which takes half the time and is no number."""
    _savefig(Figure(figsize=(1, 1)), *arguments, **options)


# --- how it is kept


def kept(file: Path) -> str:
    """The text of a file without what is unstable, with short numbers."""
    text = file.read_text().replace(model_folder(), "TINY")
    if file.suffix == ".json":
        text = json.dumps(stable(json.loads(text)), indent=1, ensure_ascii=False)
        text = INNERMOST.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    else:
        text = "".join(
            line for line in text.splitlines(keepends=True) if not UNSTABLE_LINES.match(line)
        )
    return NUMBER.sub(shorter, text).rstrip("\n") + "\n"


def stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: stable(each) for key, each in value.items() if key not in UNSTABLE_KEYS}
    return [stable(each) for each in value] if isinstance(value, list) else value


def shorter(number: re.Match[str]) -> str:
    """A number with fewer digits, and still a float where it was one."""
    if len(number[0]) <= DIGITS or number[0].lstrip("+-").isdigit():
        return number[0]
    text = f"{float(number[0]):.{DIGITS}g}"
    return text if re.search(r"[.e]", text) else f"{text}.0"


# --- how it is compared


def leaves(name: str, text: str) -> Iterator[Leaf]:
    """Every value of a file in its order, with its place."""
    if name.endswith(".json"):
        yield from leaves_of(json.loads(text), "")
    elif name.endswith(".csv"):
        header, *rows = csv.reader(io.StringIO(text))
        yield "header", ",".join(header)
        for line, row in enumerate(rows, 2):
            yield from (
                (f"line {line}, {key}", cell) for key, cell in zip(header, row, strict=True)
            )
    else:
        yield from ((f"line {line}", each) for line, each in enumerate(text.splitlines(), 1))


def leaves_of(value: Any, place: str) -> Iterator[Leaf]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        if isinstance(each, dict | list) and each:
            yield from leaves_of(each, f"{place}/{key}")
        else:
            yield f"{place}/{key}", each


def differences(name: str, golden: str, text: str) -> list[str]:
    """Where two files differ; places alone where these are not the same."""
    old, new = list(leaves(name, golden)), list(leaves(name, text))
    for (place, _), (found, _) in zip(old, new, strict=False):
        if place != found:
            return [f"{name}: expected {place}, got {found}"]
    if len(old) != len(new):
        place = max(old, new, key=len)[min(len(old), len(new))][0]
        return [f"{name}: expected {len(old)} values, got {len(new)}; the first more is {place}"]
    return [
        f"{name}: {place}: expected {one!r}, got {other!r}"
        for (place, one), (_, other) in zip(old, new, strict=True)
        if not same(one, other)
    ]


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return close(one, other)
    if not isinstance(one, str):
        return one == other
    numbers = list(zip(NUMBER.findall(one), NUMBER.findall(other), strict=False))
    return NUMBER.split(one) == NUMBER.split(other) and all(
        a == b or (not (a.isdigit() and b.isdigit()) and close(float(a), float(b)))
        for a, b in numbers
    )


def close(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


# --- the tests


@pytest.mark.parametrize("name", ["traces", *STUDIES])
def test_what_is_made_again_is_the_golden(name: str, tmp_path: Path):
    found = made(name, tmp_path / name)
    goldens = [file for file in sorted((GOLDEN / name).rglob("*")) if file.is_file()]
    assert sorted(found) == sorted(str(file.relative_to(GOLDEN / name)) for file in goldens)
    wrong = [
        each
        for path, text in found.items()
        for each in differences(path, (GOLDEN / name / path).read_text(), text)
    ]
    assert not wrong, "\n".join([f"{len(wrong)} differences", *wrong[:20]])


def remake() -> None:
    """Make every golden anew in place of those that are kept."""
    torch.set_num_threads(1)
    for name in ("traces", *STUDIES):
        with TemporaryDirectory() as scratch:
            files = made(name, Path(scratch) / name)
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        for path, text in files.items():
            (GOLDEN / name / path).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name / path).write_text(text)
        sys.stdout.write(
            f"{name}: {len(files)} files, {sum(map(len, files.values()))} characters\n"
        )


if __name__ == "__main__":
    remake()
