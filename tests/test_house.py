"""The house rules that no linter keeps: sizes, comments, names, prints, broad excepts.

Which room may import which is the business of `test_walls.py`.
"""

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tempo", "analysis")
FILE_LINES = range(60, 601)
SHORT_FILES = {"__init__.py", "errors.py", "vocabulary.py", "twins.py"}  # names and errors
MAX_FUNCTION_LINES = 60  # the docstring is not counted: prose is not complexity
MIN_COMMENTS = 25  # for each 1,000 lines of code: why an index, an order, a tolerance
MAX_PARAMETERS = 6  # keyword-only ones, self and cls are not counted
MAX_NESTING = 3  # the house aims at 2
BANNED_NAMES = {"utils", "helpers", "common", "core", "manager", "handler", "processor", "service"}
BANNED_NAMES |= {"util", "helper", "managers", "handlers", "processors", "services", "v2"}
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar)
BLOCKS = (*BLOCKS, ast.Match)


def source_files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            yield file, node


def functions() -> Iterator[tuple[Path, Function]]:
    return ((file, node) for file, node in nodes() if isinstance(node, Function))


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def room(file: Path) -> str:
    """The first name under the package: `tempo/cli/live.py` and `tempo/cli.py` are both `cli`."""
    return file.relative_to(ROOT).parts[1].removesuffix(".py")


def length(function: Function) -> int:
    first = function.body[0]
    is_documented = ast.get_docstring(function) is not None
    prose = (first.end_lineno or first.lineno) - first.lineno + 1 if is_documented else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - prose


def nesting(node: ast.AST) -> int:
    """Depth of blocks inside one function or module; what a nested function holds is its own."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def parameters(function: Function) -> int:
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def catches_everything(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(
        each is None or ast.unparse(each) in {"Exception", "BaseException"} for each in caught
    )


def public_names(tree: ast.Module) -> set[str]:
    """Functions, classes and type names that a module offers; constants keep to their module."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") and not name.isupper()}


def comments(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(lines.readline))


def function_of(source: str) -> Function:
    return next(each for each in ast.walk(ast.parse(source)) if isinstance(each, Function))


# --- the rulers measure what they say


def test_a_docstring_does_not_lengthen_a_function():
    assert length(function_of('def f():\n    """One.\n\n    Two.\n    """\n    return 1')) == 2
    assert length(function_of("def f():\n    return 1")) == 2


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        ("return 1", 0),
        ("if a:\n  pass\n elif b:\n  pass\n elif c:\n  pass\n else:\n  pass", 1),
        ("if a:\n  pass\n else:\n  for b in c:\n   pass", 2),
        ("with a:\n  for b in c:\n   if d:\n    pass", 3),
        ("for a in b:\n  def g():\n   if c:\n    pass", 1),
        ("try:\n  pass\n except E:\n  if a:\n   pass", 2),
    ],
)
def test_nesting_counts_blocks_and_takes_elif_for_one(body: str, depth: int):
    assert nesting(function_of(f"def f():\n {body}")) == depth


@pytest.mark.parametrize(
    ("caught", "broad"),
    [
        ("", True),
        ("Exception", True),
        ("(ValueError, BaseException)", True),
        ("ValueError", False),
        ("(ValueError, KeyError)", False),
    ],
)
def test_a_broad_except_is_seen_in_every_spelling(caught: str, broad: bool):
    tree = ast.parse(f"try:\n  pass\nexcept {caught}:\n  pass")
    assert any(map(catches_everything, ast.walk(tree))) is broad


def test_the_look_for_torch_sees_it():
    assert run_and_look_for_torch("sys.modules['torch'] = sys").returncode == 77


# --- the rules


def test_both_packages_are_read():
    assert {file.relative_to(ROOT).parts[0] for file in source_files()} == set(PACKAGES)


def test_files_are_neither_crumbs_nor_scrolls():
    """A file of a few lines is a door too many; one of a thousand hides what it holds."""
    sizes = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for file in source_files()
        if file.name not in SHORT_FILES and room(file) != "cli"
    }
    assert {file: size for file, size in sizes.items() if size not in FILE_LINES} == {}


def test_comments_say_why_often_enough():
    lines = sum(bool(line.strip()) for f in source_files() for line in f.read_text().splitlines())
    assert 1000 * sum(map(comments, source_files())) / lines >= MIN_COMMENTS


def test_a_public_name_stands_in_one_module():
    """The commands bear the names of the functions they call, and stand apart."""
    homes: dict[str, list[str]] = {}
    for file in source_files():
        if room(file) != "cli":
            for name in public_names(ast.parse(file.read_text(encoding="utf-8"))):
                homes.setdefault(name, []).append(str(file.relative_to(ROOT)))
    # `tempo.boost` is the study, `tempo.edits.boost` the edit that it makes
    twice = {name: files for name, files in homes.items() if len(files) > 1}
    assert set(twice) <= {"boost"}, twice


@pytest.mark.parametrize(
    ("measure", "bound"),
    [(length, MAX_FUNCTION_LINES), (nesting, MAX_NESTING), (parameters, MAX_PARAMETERS)],
)
def test_functions_are_small(measure: Callable[[Function], int], bound: int):
    sizes = {f"{place(file, node)} {node.name}": measure(node) for file, node in functions()}
    assert {name: size for name, size in sizes.items() if size > bound} == {}


def test_no_except_is_broad():
    assert [place(file, node) for file, node in nodes() if catches_everything(node)] == []


def test_only_the_command_line_prints():
    prints = [
        place(file, node)
        for file, node in nodes()
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and room(file) != "cli"
    ]
    assert prints == []


def test_nothing_is_left_for_later():
    left = [
        str(file.relative_to(ROOT)) for file in source_files() if LEFTOVER.search(file.read_text())
    ]
    assert left == []


def test_module_names_say_what_is_inside():
    words = {
        str(file.relative_to(ROOT)): {
            word
            for part in file.relative_to(ROOT).with_suffix("").parts
            for word in part.split("_")
        }
        for file in source_files()
    }
    assert {file for file, parts in words.items() if parts & BANNED_NAMES} == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_path_that_a_page_names_is_there(page: str):
    """The map leads somewhere: paths are from the root, or from one of the two packages."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text)
    homes = (ROOT, ROOT / "tempo", ROOT / "analysis", ROOT / "analysis" / "tempo_analysis")
    assert len(named) >= 5
    missing = [name for name in named if not any((home / name).exists() for home in homes)]
    # folders that commands write, and examples of names
    assert [name for name in missing if not re.search(r"NAME|^(page|tables|figures)/$", name)] == []


def run_and_look_for_torch(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that exits with 77 if torch is imported by its end."""
    look = (
        "import atexit, os, sys; atexit.register(lambda: 'torch' in sys.modules and os._exit(77))"
    )
    command = [sys.executable, "-c", f"{look}\n{program}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "program",
    [
        "import tempo",
        "import tempo_analysis",
        "import tempo, tempo_analysis; dir(tempo)",
        "sys.argv = ['tempo', '--help']; from tempo.cli import main; main()",
    ],
    ids=["import tempo", "import tempo_analysis", "dir(tempo)", "tempo --help"],
)
def test_torch_is_not_imported_until_a_model_is_needed(program: str):
    done = run_and_look_for_torch(program)
    assert done.returncode == 0, f"77 means that torch was imported\n{done.stderr}"


def test_every_test_file_asserts_something():
    silent = [
        file.name
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if not any(
            isinstance(node, ast.Assert)
            or (isinstance(node, ast.Attribute) and node.attr in {"raises", "warns"})
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
    ]
    assert silent == []
