"""Settings of all tests, and which cases run where the shapes in signatures are checked."""

from typing import Any

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

settings.register_profile("tempo", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("tempo")

# Tiny models gain nothing from more threads, and waiting for a busy core costs a lot.
torch.set_num_threads(1)

# Checking every signature makes an engine case about five times as slow, and finds the same in
# every family: one with grouped heads, and one with soft caps, windows and two layer types.
SHAPE_FAMILIES = ("llama", "gemma2")


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is saved empty: drawing is most of the time of a command, and is no number."""
    draw_blank(monkeypatch)


def draw_blank(patch: pytest.MonkeyPatch) -> None:
    """Let `savefig` write an empty figure, for fixtures that live longer than a test."""
    savefig = Figure.savefig

    def save_blank(_: Figure, *arguments: Any, **options: Any) -> None:
        savefig(Figure(figsize=(1, 1)), *arguments, **options)

    patch.setattr(Figure, "savefig", save_blank)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--jaxtyping-packages`, leave out the cases of the other families."""
    if not config.getoption("--jaxtyping-packages"):
        return
    left_out = [item for item in items if family_of(item) not in (None, *SHAPE_FAMILIES)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def family_of(item: pytest.Item) -> str | None:
    """The family of models that a case names, if any."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("family") if callspec else None
