"""Write what a boost did: `boost.json`, a page, and tables and figures beside it."""

from collections.abc import Mapping
from pathlib import Path

from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.study import Study, write_study
from tempo_analysis.studies.boost.figures import (
    CAPTIONS,
    free_figure,
    response_figure,
    restoring_figure,
)
from tempo_analysis.studies.boost.result import BoostFindings
from tempo_analysis.studies.boost.tables import boost_tables

BOOST_FILE = "boost.json"
_TITLES = {
    "response": "Dose and response",
    "restoring": "The dose that gives members their mass alone",
    "free": "Decoded freely under the bias",
}


def write_boost(found: BoostFindings, folder: Path, *, force: bool = False) -> list[Path]:
    """Write everything, each file whole or not at all; the page first among the paths.

    Raises:
        OutputError: The folder holds something else, or the disk refused.
    """
    study = Study(
        file=BOOST_FILE,
        json=found.json(),
        title=f"Boosting parallel tokens: {found.model['name']}",
        sentences=found.sentences(),
        facts=_facts(found),
        drawings=drawings(found),
        tables=boost_tables(found),
    )
    return write_study(study, folder, force=force)


def drawings(found: BoostFindings) -> tuple[Drawing, ...]:
    """Every figure that has something to show."""
    made = {
        "response": response_figure(found) if found.doses else None,
        "restoring": restoring_figure(found),
        "free": free_figure(found),
    }
    return tuple(
        Drawing(name, _TITLES[name], CAPTIONS[name], figure)
        for name, figure in made.items()
        if figure is not None
    )


def _facts(found: BoostFindings) -> Mapping[str, str]:
    model = found.model
    return {
        "model": f"{model['name']}, {model['dtype']}, {str(model['fingerprint'])[:12]}",
        "prompts": f"{len(found.prompts)}, and {len(found.refused)} without an answer",
        "sets": f"{found.n_sets} of two or more members that a step follows",
        **{name.replace("_", " "): f"{value}" for name, value in found.settings.items()},
        "seed": str(found.seed),
        "tokens": found.tokens_hash[:12],
    }
