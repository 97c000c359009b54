"""Style and saving of all figures, without pyplot and without lasting global settings."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT = "#888888"
NO_DATA = "#BBBBBB"
DPI = 200
WIDTH_INCHES = 6.8


@contextmanager
def house_style() -> Generator[None]:
    """Set fonts and lines inside the block, and restore the settings after it."""
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "legend.fontsize": 7,
        # Without a salt ids in SVG are random, and equal figures would differ from run to run.
        "svg.hashsalt": "tempo",
    }
    with rc_context(style):
        yield


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """A figure with its name, title and caption.

    Attributes:
        name: Stem of its files.
        title: What it shows, in a few words.
        caption: What is drawn, what a band or bar is, and n.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def new_figure(height_inches: float) -> Figure:
    """An empty figure as wide as a column of text."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    # Attached by hand, because only pyplot does it otherwise, and pyplot keeps global state.
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write `name.png` and `name.svg`, each whole or not at all; gives the name of the PNG."""
    with house_style():
        # No date in the SVG: equal numbers give equal files.
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            path = folder / f"{name}.{kind}"
            # `format` is named below, since the suffix of the temporary file is not that of an
            # image.
            temporary = path.with_name(path.name + ".tmp")
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
            temporary.replace(path)
    return f"{name}.png"


def save_drawings(drawings: Sequence[Drawing], folder: Path, *, stale: str = "") -> list[Path]:
    """Write each as PNG and SVG into a folder.

    Args:
        stale: Pattern of the files that earlier findings may have left here; those that are none of
            these drawings are removed. Nothing is removed where it is empty.
    """
    for one in drawings:
        save_figure(one.figure, folder, one.name)
    names = {one.name for one in drawings}
    for old in folder.glob(stale) if stale else ():
        if old.stem not in names:
            old.unlink()
    return [folder / f"{one.name}.{kind}" for one in drawings for kind in ("png", "svg")]


def colour(number: int) -> str:
    """The colour of the arm or pair with this number."""
    return COLOURS[number % len(COLOURS)]


def plain_text(text: str) -> str:
    """Escape `$`, so that matplotlib draws it instead of parsing mathematics."""
    # Two `$` in a token or arm would switch matplotlib to its mathematics and may fail to parse.
    return text.replace("$", r"\$")
