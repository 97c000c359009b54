"""An ablation as a whole, and its files: tables, figures and a page beside `ablation.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo_analysis.parallel.results import plain
from tempo_analysis.report.findings import Findings
from tempo_analysis.report.predictions import PredictionTable, prediction_sheet, shift_sheet
from tempo_analysis.report.study import Study, write_study
from tempo_analysis.studies.ablation.figures import ablation_drawings
from tempo_analysis.studies.ablation.result import AblationFindings
from tempo_analysis.studies.ablation.tables import ablation_tables

ABLATION_FILE = "ablation.json"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ablation(Findings):
    """What an ablation found.

    Attributes:
        findings: Over all prompts.
        predictions: What each prompt's last token predicts under every condition.
    """

    findings: AblationFindings
    predictions: tuple[PredictionTable, ...]

    def sentences(self) -> list[str]:
        """What was found, one statement each."""
        return self.findings.sentences()

    def document(self) -> dict[str, Any]:
        """The content of `ablation.json`: plain JSON values, `None` where there is no data."""
        return self.findings.document() | {"predictions": plain(self.predictions)}

    def json(self) -> str:
        """The document as text, the same for the same model, prompts and options."""
        return json.dumps(self.document(), allow_nan=False, indent=1) + "\n"


def write_ablation(found: Ablation, folder: Path, *, force: bool = False) -> list[Path]:
    """Write everything, each file whole or not at all; the page first among the paths.

    Raises:
        OutputError: The folder holds something else, or the disk refused.
    """
    findings, predictions = found.findings, found.predictions
    sheets = (prediction_sheet(predictions), shift_sheet(predictions))
    study = Study(
        file=ABLATION_FILE,
        json=found.json(),
        title=f"Ablation of {', '.join(map(str, findings.facts.heads))}",
        sentences=found.sentences(),
        facts=_facts(findings),
        drawings=ablation_drawings(findings),
        tables=(*ablation_tables(findings), *sheets),
        predictions=predictions,
    )
    return write_study(study, folder, force=force)


def _facts(findings: AblationFindings) -> Mapping[str, str]:
    """How it was made."""
    facts = findings.facts
    places = facts.prompts
    return {
        "model": f"{facts.model['name']}, {facts.model['dtype']}",
        "weights": str(facts.model["fingerprint"]),
        "heads": ", ".join(
            f"{head} (KV head {head.head // facts.model['queries_per_kv_head']})"
            for head in facts.heads
        ),
        "prompts": f"{findings.n_prompts}, {len(places['left_out'])} left out",
        "t": str(places["drawn"]),
        "seed": str(facts.seed),
        **{f"condition {name}": words for name, words in facts.conditions.items()},
    }
