"""Analyse a run: the numbers of every arm, and how they are shown and saved."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tempo.trace.run import Run
from tempo.trace.run_folder import RUN_FILE
from tempo_analysis.parallel.figures import run_drawings
from tempo_analysis.parallel.head_kinds import KINDS, MEASURES, RULE
from tempo_analysis.parallel.metrics import Metric, MetricRows, metric_row, rows_of
from tempo_analysis.parallel.page import write_page
from tempo_analysis.parallel.page_charts import RoleMaps
from tempo_analysis.parallel.report import REPORT_FILE, report_text, sentences
from tempo_analysis.parallel.run_numbers import RunNumbers, run_numbers
from tempo_analysis.parallel.tables import fact_rows, tables_of
from tempo_analysis.parallel.twins import Twin
from tempo_analysis.report.document import Document, number, plain, stated
from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.findings import Findings, refuse_other_files
from tempo_analysis.report.notebook import (
    MOST_ROWS,
    cells_markup,
    refused_markup,
    region_markup,
    table_markup,
)
from tempo_analysis.report.table import Table
from tempo_analysis.stats.intervals import Unanswered

# To be raised with any change of `results.json` that breaks its readers.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Results(Findings, RunNumbers):
    """The numbers of a run, with sentences, tables, figures and report.

    Attributes:
        run: The run that was analysed.
        role_maps: Further maps of heads for the page.
    """

    file = "results.json"
    stale_figures = ""
    run: Run = field(repr=False)
    role_maps: RoleMaps | None = field(default=None, repr=False)

    def __getitem__(self, key: str | tuple[str, str]) -> MetricRows:
        """The rows of a metric, of all arms or of one.

        Args:
            key: A name, or a name and an arm. A name that no row has means every row whose name
                begins with it.

        Raises:
            InputError: No such metric or arm.

        Example:
            >>> results["attention_ratio_without_sink", "isolated"].only.estimate
            >>> results["attention_ratio"].to_pandas()
        """
        # `results["a"]` passes a text, `results["a", "b"]` a tuple.
        name, arm = (key, None) if isinstance(key, str) else key
        return rows_of(self.metrics, name, arm)

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"Run of {fact_rows(self.run).get('model name', 'a model')}"

    def sentences(self) -> list[str]:
        """The numbers worth a sentence, in the order of the results."""
        return [f"{s.arm}: {s.what}: {s.value}: {s.verdict}" for s in sentences(self)]

    def document(self) -> Document:
        """The content of `results.json`: plain JSON values, `None` where there is no data."""
        return {
            "format": FORMAT,
            "arms": list(self.arms),
            "n_prompts": self.n_prompts,
            "metrics": [plain(metric_row(metric)) for metric in self.metrics],
            "detail": {
                "greedy": self.greedy,
                "replays": dict(self.replays),
                "metrics": plain(self.metrics),
                "by_arm": plain(self.by_arm),
                # The curves are under `divergence`; twins repeat none of them (`_without_steps`).
                "divergence": plain(self.divergence),
                "twins": {arm: _without_steps(twin) for arm, twin in self.twins.items()},
                "set_effects": plain(self.set_effects),
                "refusals": plain(self.refusals),
                # The columns of head tables are arrays without names; these and the rule make them
                # readable.
                "heads": {"measures": list(MEASURES), "kinds": list(KINDS), "rule": RULE},
            },
        }

    def tables(self) -> tuple[Table, ...]:
        """Every table that has a row, in the order of the report."""
        return tables_of(self.run, self)

    def figures(self) -> tuple[Drawing, ...]:
        """Every figure that has something to show."""
        return run_drawings(self.run, self)

    def facts(self) -> dict[str, str]:
        """What was run: model, options, versions."""
        return fact_rows(self.run)

    @classmethod
    def check_folder(cls, folder: Path, *, force: bool = False) -> None:
        """As for every study, but the folder of a run is accepted and its report is replaced.

        Raises:
            OutputError: It is a file, or holds other files, or earlier findings and `force` was
                not given.
        """
        # A run folder holds traces beside the report, which is no reason to refuse it, and its
        # report is made from them, so nothing is lost by making it again.
        if not (folder / RUN_FILE).exists():
            refuse_other_files(folder, cls.file, force=force)

    def texts(self, drawings: Sequence[Drawing]) -> dict[str, str]:
        """The report in Markdown."""
        return {REPORT_FILE: report_text(self.run, self, drawings)}

    def write_page(
        self, folder: Path, tables: Sequence[Table], drawings: Sequence[Drawing]
    ) -> Path:
        """Write `report.html` with the texts and the attention of the run; gives its path."""
        return write_page(self.run, self, tables, folder, role_maps=self.role_maps)

    def _repr_html_(self) -> str:
        return results_markup(self.metrics, self.refusals, n_prompts=self.n_prompts)


def analyze(run: Run) -> Results:
    """Ask every question of every arm of a run.

    With fewer than 8 prompts there are estimates without intervals, and the verdicts say so.

    Args:
        run: From `tempo.compare`, `tempo.generate`, `tempo.replay` or `tempo.open_run`.

    Returns:
        Every number with its interval over prompts, beside chance, null and verdict; curves and
        tables of each arm; and the questions without an answer.

    Raises:
        InputError: The run holds nothing to analyse, or its traces do not fit together.

    Example:
        >>> results = tempo.analyze(tempo.open_run("runs/cats"))
        >>> results["attention_ratio", "isolated"].to_pandas()
        >>> results.save("reports/cats")
    """
    found = run_numbers(run)
    # `Results` is `RunNumbers` plus the run that its page and report are made from.
    names = RunNumbers.__dataclass_fields__
    return Results(**{name: getattr(found, name) for name in names}, run=run)


def _without_steps(twin: Twin) -> Any:
    """A twin as JSON values, without its curves, which are under `divergence`."""
    return {name: value for name, value in plain(twin).items() if name != "by_step"}


_HEADINGS = ("metric", "arm", "estimate (95 %)", "prompts", "chance", "null", "verdict")
_NOTE = (
    "Intervals are over prompts. Chance is even attention, or no effect; the null is the same "
    "number on the greedy runs. A dash is no data, never zero."
)


def results_markup(
    metrics: Sequence[Metric], refusals: Sequence[Unanswered], *, n_prompts: int
) -> str:
    """HTML table of the numbers with interval, chance, null and verdict, then the refusals."""
    # A run of many arms has hundreds of rows, which a notebook would keep in its file.
    body = "".join(_markup_row(metric) for metric in metrics[:MOST_ROWS])
    hidden = len(metrics) - MOST_ROWS
    rest = f"<p>{hidden} more numbers are in <code>metrics</code>.</p>" if hidden > 0 else ""
    refused = [f"{one.question}, {one.arm}: {one.reason}" for one in refusals]
    said = f"Results of {n_prompts} prompts. {_NOTE}"
    return region_markup(
        "Results", said, f"{table_markup(_HEADINGS, body)}{rest}{refused_markup(refused)}"
    )


def _markup_row(metric: Metric) -> str:
    found = metric.interval
    texts = [metric.name, metric.arm, stated(found), str(found.n)]
    return cells_markup([*texts, number(metric.chance), number(metric.null), metric.verdict])
