"""Results of an ablation: sentences, document, tables, figures and facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tempo_analysis.report.document import Document, plain
from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.findings import Findings
from tempo_analysis.report.predictions import PredictionTable, prediction_sheet, shift_sheet
from tempo_analysis.report.table import Table
from tempo_analysis.studies.ablation.figures import ablation_drawings
from tempo_analysis.studies.ablation.result import AblationNumbers
from tempo_analysis.studies.ablation.tables import ablation_tables


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ablation(Findings):
    """The results of an ablation.

    Attributes:
        numbers: Over all prompts.
        predictions: What each prompt's last token predicts under every condition.
    """

    file = "ablation.json"
    numbers: AblationNumbers
    predictions: tuple[PredictionTable, ...]

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"Ablation of {', '.join(map(str, self.numbers.facts.heads))}"

    def sentences(self) -> list[str]:
        """The results, one sentence for each statement."""
        return self.numbers.sentences()

    def document(self) -> Document:
        """The content of `ablation.json`: plain JSON values, `None` where there is no data."""
        return self.numbers.document() | {"predictions": plain(self.predictions)}

    def tables(self) -> tuple[Table, ...]:
        """Every table that has rows, then the two of the predictions."""
        predicted = self.predictions
        return (
            *ablation_tables(self.numbers),
            prediction_sheet(predicted),
            shift_sheet(predicted),
        )

    def figures(self) -> tuple[Drawing, ...]:
        """Every figure that there are numbers for."""
        return ablation_drawings(self.numbers)

    def prediction_tables(self) -> Sequence[PredictionTable]:
        """What each prompt's last token predicts under every condition."""
        return self.predictions

    def facts(self) -> Mapping[str, str]:
        """How it was made."""
        facts = self.numbers.facts
        places = facts.prompts
        return {
            "model": f"{facts.model['name']}, {facts.model['dtype']}",
            "weights": str(facts.model["fingerprint"]),
            "heads": ", ".join(
                # The KV head too: query heads that share one read the same keys and values.
                f"{head} (KV head {head.head // facts.model['queries_per_kv_head']})"
                for head in facts.heads
            ),
            "prompts": f"{self.numbers.n_prompts}, {len(places['left_out'])} left out",
            "t": str(places["drawn"]),
            "seed": str(facts.seed),
            **{f"condition {name}": words for name, words in facts.conditions.items()},
        }
