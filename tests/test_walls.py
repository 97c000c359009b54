"""The walls between rooms, by folder: who may import whom, and where torch may be named.

`pyproject.toml` has the floors (import-linter, run by `make check`); what it cannot say stands
here. Every rule reads folders, so a new or renamed module is held to the rule of its room.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPO, ANALYSIS = Path("tempo"), Path("analysis") / "tempo_analysis"
ALONE = {"__init__.py", "errors.py", "vocabulary.py", "oracle.py", "twins.py"}
"""Modules of `tempo` that are no part of a room; users write `tempo.twins`."""

ROOMS = {"policy", "trace", "models", "engine", "causal", "prompts", "run"}
ROOMS |= {"doctor", "testing", "cli"}
ANALYSIS_ROOMS = {"stats", "report", "parallel", "studies"}
TORCH_ROOMS = {"models", "engine", "causal", "run", "doctor", "testing"}
TRANSFORMERS_ROOMS = {"models", "engine", "causal", "doctor", "testing"}
"""The rooms that know a model; `oracle.py` too."""

Import = tuple[Path, str]


def imports(root: Path) -> Iterator[Import]:
    """Every absolute import as (file, module or module.symbol), late and guarded ones included."""
    for package in (TEMPO, ANALYSIS):
        for file in sorted((root / package).rglob("*.py")):
            inside = file.relative_to(root)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((inside, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield from ((inside, f"{node.module}.{a.name}") for a in node.names)


def room_of(file: Path) -> str:
    """The folder below its package: `policy`, `studies/heads`; a module alone by its own name."""
    parts = file.relative_to(ANALYSIS if file.is_relative_to(ANALYSIS) else TEMPO).parts
    if len(parts) == 1:
        return parts[0].removesuffix(".py")
    return "/".join(parts[:2]) if parts[0] == "studies" else parts[0]


def is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# --- the rules: each gives the imports that break it


def names_the_analysis(root: Path) -> list[Import]:
    """Only the command line and the lazy names of `tempo` know the analysis."""
    return [
        (file, name)
        for file, name in imports(root)
        if is_of(name, "tempo_analysis")
        and file.is_relative_to(TEMPO)
        and room_of(file) not in {"cli", "__init__"}
    ]


def names_torch(root: Path) -> list[Import]:
    """Rules, traces and analyses are numpy; in the analysis only `measure.py` runs a model."""

    def may(file: Path) -> bool:
        if file.is_relative_to(ANALYSIS):
            return room_of(file).startswith("studies/") and file.name == "measure.py"
        return room_of(file) in TORCH_ROOMS | {"oracle"}

    return [(f, name) for f, name in imports(root) if is_of(name, "torch") and not may(f)]


def names_transformers(root: Path) -> list[Import]:
    """Only the rooms that know a model name transformers."""
    return [
        (file, name)
        for file, name in imports(root)
        if is_of(name, "transformers")
        and (file.is_relative_to(ANALYSIS) or room_of(file) not in TRANSFORMERS_ROOMS | {"oracle"})
    ]


def joins_the_executors(root: Path) -> list[Import]:
    """The oracle and the engine share no code that attends, masks or decodes."""
    return [
        (file, name)
        for file, name in imports(root)
        if (file == TEMPO / "oracle.py" and is_of(name, "tempo.engine"))
        or (file.is_relative_to(TEMPO / "engine") and is_of(name, "tempo.oracle"))
    ]


def takes_private_names(root: Path) -> list[Import]:
    """What begins with an underscore stays in its room."""
    found = []
    for file, name in imports(root):
        module, _, symbol = name.rpartition(".")
        own = ".".join(file.with_suffix("").parts).removeprefix("analysis.")
        same_room = module.split(".")[:2] == own.split(".")[:2]
        if module.partition(".")[0] in {"tempo", "tempo_analysis"} and not same_room:
            found += [(file, name)] if symbol.startswith("_") and symbol != "__version__" else []
    return found


RULES = (
    names_the_analysis,
    names_torch,
    names_transformers,
    joins_the_executors,
    takes_private_names,
)
PLANTED = {
    names_the_analysis: ("tempo/policy/slots.py", "import tempo_analysis.stats.intervals"),
    names_torch: ("analysis/tempo_analysis/studies/heads/result.py", "from torch import Tensor"),
    names_transformers: ("tempo/run/request.py", "import transformers"),
    joins_the_executors: ("tempo/oracle.py", "from tempo.engine.decode import decode"),
    takes_private_names: ("tempo/run/request.py", "from tempo.engine.decode import _place"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The two packages and their contracts, to break a rule in."""
    for package in (TEMPO, ANALYSIS):
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(root: Path, file: str, line: str) -> None:
    place = root / file
    place.write_text(f"{place.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")


# --- the rooms are those, and each rule holds


def test_every_module_stands_in_a_room_of_the_plan():
    flat = {file.name for file in (ROOT / TEMPO).glob("*.py")}
    assert flat == ALONE
    assert {file.name for file in (ROOT / ANALYSIS).glob("*.py")} == {"__init__.py"}
    rooms = {file.parent.name for file in (ROOT / TEMPO).glob("*/__init__.py")}
    assert rooms == ROOMS
    assert {f.parent.name for f in (ROOT / ANALYSIS).glob("*/__init__.py")} == ANALYSIS_ROOMS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_an_import_that_breaks_the_rule_is_seen(rule, copy: Path):
    file, line = PLANTED[rule]
    plant(copy, file, line)
    ((found, name),) = rule(copy)
    assert found == Path(file)
    assert name.split(".")[0] in line


def linted(root: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` over a copy of the packages, as `make check` runs it."""
    program = (
        "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    command = [sys.executable, "-c", program, "--no-cache"]
    path = f"{root}:{root / 'analysis'}"
    return subprocess.run(
        command, cwd=root, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("tempo/policy/slots.py", "from tempo.engine.decode import decode", "Rooms of tempo"),
        (
            "analysis/tempo_analysis/report/csv.py",
            "import tempo_analysis.parallel.ratio",
            "Rooms of tempo_analysis",
        ),
        (
            "analysis/tempo_analysis/studies/boost/plan.py",
            "import tempo_analysis.studies.heads.plan",
            "A study knows no other study",
        ),
    ],
)
def test_an_import_against_the_floors_is_refused(copy: Path, file: str, line: str, broken: str):
    plant(copy, file, line)
    done = linted(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{broken} BROKEN" in done.stdout


def test_a_room_without_a_floor_is_refused(copy: Path):
    (copy / TEMPO / "cellar").mkdir()
    (copy / TEMPO / "cellar" / "__init__.py").write_text('"""A new room."""\n')
    done = linted(copy)
    assert done.returncode == 1
    assert "cellar" in done.stdout


NEEDS_A_MODEL = {"heads/passes.py", "heads/effects.py", "boost/reference.py", "boost/replays.py"}
"""What runs a model beside each `measure.py`; all else in the analysis is read without torch."""


def runs_a_model(file: Path) -> bool:
    return file.name == "measure.py" or "/".join(file.parts[-2:]) in NEEDS_A_MODEL


def test_what_reads_traces_never_imports_torch():
    """Also not by way of another module: seen in a fresh interpreter, over every such module."""
    files = [file for package in (TEMPO, ANALYSIS) for file in (ROOT / package).rglob("*.py")]
    read = [
        file.relative_to(ROOT)
        for file in files
        if room_of(file.relative_to(ROOT)) in {"policy", "trace", "vocabulary", "errors"}
        or (file.is_relative_to(ROOT / ANALYSIS) and not runs_a_model(file))
    ]
    names = [".".join(f.with_suffix("").parts).removeprefix("analysis.") for f in read]
    program = (
        f"import sys; [__import__(n) for n in {names!r}]; sys.exit(77 * ('torch' in sys.modules))"
    )
    path = f"{ROOT}:{ROOT / 'analysis'}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, "77 means that torch was imported"
