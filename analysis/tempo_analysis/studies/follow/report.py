"""Write what was found of one member: `follow.json`, tables, the figure and a page."""

from pathlib import Path

from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.study import Study, write_study
from tempo_analysis.studies.follow.figures import caption, member_figure
from tempo_analysis.studies.follow.result import Followed
from tempo_analysis.studies.follow.tables import member_tables
from tempo_analysis.studies.follow.trajectory import shown

FOLLOW_FILE = "follow.json"


def write_member(found: Followed, folder: Path, *, force: bool = False) -> list[Path]:
    """Write everything, each file whole or not at all; the page first among the paths.

    Raises:
        OutputError: The folder holds something else, or the disk refused.
    """
    name = shown(found.member.text)
    title = f"{name} through the layers"
    study = Study(
        file=FOLLOW_FILE,
        json=found.json(),
        title=f"One member through the layers: {name}",
        sentences=found.sentences(),
        facts=facts(found),
        drawings=(Drawing("member", title, caption(found), member_figure(found)),),
        tables=member_tables(found),
    )
    return write_study(study, folder, force=force)


def facts(found: Followed) -> dict[str, str]:
    """How it was made, for the foot of the page."""
    model = found.model
    return {
        "model": f"{model['name']}, {model['dtype']}, weights {str(model['fingerprint'])[:12]}",
        "prompt": f"{found.prompt_id}: {found.prompt}",
        "arm": found.arm,
        "run": found.lattice,
        "followed": f"slot {found.member.slot}, set {found.step}; {found.chosen}",
        "cases": "1 member of 1 prompt: no intervals",
        "lens of the last depth": f"equals the logits to {found.lens_error:.2g}",
        "replay": f"equals the recorded readouts to {found.replay_error:.2g} nats",
    }
