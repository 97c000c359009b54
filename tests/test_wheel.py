"""The built wheel, in an environment of its own, beside a folder `analysis/` of the user's own."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.command_line import CAT, model_folder

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package index would serve."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A research repository: an environment with the wheel, and a package `analysis` of its own.

    The dependencies are those of this test run, lent by their folder; what is installed there by a
    `.pth` file, as the project itself is, stays out.
    """
    place = tmp_path_factory.mktemp("repository")
    venv.create(place / "env", with_pip=False)
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    (place / "analysis").mkdir()
    (place / "analysis" / "__init__.py").write_text("OWN = True\n")
    return place


def run_as_user(user: Path, program: str, *arguments: str) -> str:
    """Run a program where the user stands, as `python -c` does: their folder comes first."""
    done = subprocess.run(
        [str(user / "env" / "bin" / "python"), "-c", program, *arguments],
        cwd=user,
        env={"PATH": os.environ["PATH"], "HOME": str(user), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_two_packages_and_their_data(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tempo", "tempo_analysis"}
    shipped = {ROOT / name for name in names} | {ROOT / "analysis" / name for name in names}
    sources = [
        file
        for package in (ROOT / "tempo", ROOT / "analysis" / "tempo_analysis")
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert [file for file in sources if file not in shipped] == []


def test_what_is_imported_is_the_wheel_and_the_users_own_analysis(user: Path):
    said = run_as_user(
        user,
        "import analysis, tempo, tempo_analysis; assert analysis.OWN; tempo.heads;"
        "print(tempo.__file__, tempo_analysis.__file__)",
    )
    assert said.count("site-packages") == 2
    assert all(Path(name).is_relative_to(user) for name in said.split())


COMMAND = "import sys; from tempo.cli import main; sys.argv[0] = 'tempo'; main()"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["generate", CAT, "--steps", "2"], "run.json"),
        (["compare", CAT, "--arms", "isolated,greedy", "--steps", "2"], "report.html"),
        (
            ["heads", "--sequences", "8", "--length", "16", "--roles", "previous_token"],
            "heads.json",
        ),
    ],
    ids=["generate", "compare", "heads"],
)
def test_a_command_runs_beside_the_users_own_analysis(
    user: Path, arguments: list[str], written: str
):
    out = user / "runs" / arguments[0]
    run_as_user(user, COMMAND, *arguments, "--model", model_folder(), "--out", str(out))
    assert (out / written).is_file()
