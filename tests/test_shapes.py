"""The run that checks the shapes in signatures checks them, and `make test` has such a run."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tempo.policy.readout import Mixture
from tempo_analysis.stats.averages import mean_over_prompts
from tests.conftest import SHAPE_FAMILIES, family_of

MAKEFILE = Path(__file__).parent.parent / "Makefile"
WRONG_SHAPES = {
    "tempo": lambda: Mixture().weights(np.zeros((2, 3), np.float32)),
    "tempo_analysis": lambda: mean_over_prompts(np.zeros((2, 3), np.int64)),
}


@pytest.mark.parametrize("call", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_a_wrong_shape_is_refused_where_shapes_are_checked(
    call: Callable[[], np.ndarray], pytestconfig: pytest.Config
):
    if pytestconfig.getoption("--jaxtyping-packages"):
        with pytest.raises(TypeCheckError):
            call()
    else:
        assert call().size


def test_make_test_has_a_run_in_which_this_file_checks_shapes():
    makefile = MAKEFILE.read_text(encoding="utf-8")
    (shapes,) = re.findall(r"^SHAPES := ((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    assert "--jaxtyping-packages=tempo,tempo_analysis,beartype.beartype" in shapes
    assert "tests/test_shapes.py" in shapes
    for target in ("test", "test-shapes"):
        (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert "$(SHAPES)" in recipe


def test_where_shapes_are_checked_two_families_stand_for_all(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config
):
    families = {family_of(item) for item in request.session.items} - {None}
    if pytestconfig.getoption("--jaxtyping-packages"):
        assert families <= set(SHAPE_FAMILIES)
