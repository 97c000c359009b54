"""The tables of a boost as data, for whoever shows or stores them."""

from collections.abc import Iterator, Sequence

from tempo_analysis.report.table import Column, Table
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.boost.dose_response import (
    FORCED,
    FREE,
    BoostNumbers,
    Dose,
    Quantity,
    at_doses,
    less,
    measured,
    slope_of,
)
from tempo_analysis.studies.boost.verdict import side

_FORCED_NOTE = (
    "The same tokens at every dose; means over the steps that see a set, then over prompts. The "
    "next set is the one that the run without bias went on with. The exact mixture is that of the "
    "plain runs of all paths through the first set and the next one, at that one step. Shares and "
    "log ratios are of the biased heads and slots. Change: less the value without a bias."
)
_FREE_NOTE = (
    "Decoded freely under the bias, without end of sequence, so all texts are equally long. The "
    "top path is run again alone in the model without bias. Change: less the value without a bias."
)
_RESTORING_NOTE = (
    "The dose at which members get on average the mass that they get alone, recomputed without "
    "their siblings and without a bias. Law: from the masses alone, if no score changed. Prompts "
    "whose curve does not rise through 0 within the doses are counted, not clipped. Pooled: where "
    "the mean curve crosses 0."
)
_SLOPES_NOTE = (
    "Least squares through the origin for each prompt, doses up to 2 nats; of KL the coefficient "
    "of the squared dose."
)
_PAIRS_NOTE = "Change under the first target less that under the second, paired by prompt."
_REPAIRS_NOTE = "What happens at the doses that give members their mass alone; less without a bias."


def boost_tables(found: BoostNumbers) -> tuple[Table, ...]:
    """Every table that has a row."""
    forced, free = (
        _at_doses(found.doses, FORCED, found.seed),
        _at_doses(found.free, FREE, found.seed),
    )
    tables = (
        restoring_table(found),
        repairs_table(found),
        Table.of("dose_response", "Dose and response", _DOSES, forced, _FORCED_NOTE),
        Table.of("free_decoding", "Decoded freely", _DOSES, free, _FREE_NOTE),
        _slopes(found),
        _pairs(found),
        _targets(found),
        _refused(found),
    )
    return tuple(table for table in tables if table.rows)


def response_table(found: BoostNumbers, measures: Sequence[str] = ("kl", "set_nll")) -> Table:
    """A few changes of every target, for a short look."""
    columns = [column for column in _DOSES if column.key not in ("unit", "value")]
    quantities = [one for one in FORCED if one.name in measures]
    items = (item for item in _at_doses(found.doses, quantities, found.seed) if item[2] != 0)
    return Table.of("response", "Response", columns, items, "Change from the run without a bias.")


def restoring_table(found: BoostNumbers) -> Table:
    """The dose that restores the mass alone."""
    columns = (
        Column("target", "target", "text", lambda one: one.target),
        Column("loss", "log(mass in the set / alone)", "interval", lambda one: one.loss),
        Column("measured", "restoring dose, nats", "interval", lambda one: one.measured),
        Column("law", "by the odds law", "interval", lambda one: one.law),
        Column("difference", "measured less law", "interval", lambda one: one.difference),
        Column("pooled", "pooled", "number", lambda one: one.pooled),
        Column("pooled_law", "pooled law", "number", lambda one: one.pooled_law),
        Column("n", "prompts", "count", lambda one: one.measured.n),
        Column("without", "prompts without", "count", lambda one: one.n_without),
    )
    title = "The dose that gives members their mass alone"
    return Table.of("restoring", title, columns, found.restoring, _RESTORING_NOTE)


def repairs_table(found: BoostNumbers) -> Table:
    """What happens at that dose."""
    columns = (
        Column("repair", "repair", "text", lambda one, quantity, change: one.name),
        Column("measure", "measure", "text", lambda one, quantity, change: quantity.title),
        Column("unit", "unit", "text", lambda one, quantity, change: quantity.unit),
        Column("change", "change", "interval", lambda one, quantity, change: change),
        Column("n", "prompts", "count", lambda one, quantity, change: change.n),
        Column("verdict", "verdict", "text", lambda one, quantity, change: side(change)),
    )
    items = (
        (one, quantity, one.change(quantity.name, seed=found.seed))
        for one in found.repairs
        for quantity in (*FORCED, *FREE)
        if quantity.name in one.values
    )
    return Table.of("repairs", "Repaired attention", columns, items, _REPAIRS_NOTE)


_DOSES = (
    Column("target", "target", "text", lambda dose, *_: dose.target),
    Column("measure", "measure", "text", lambda dose, one, *_: one.title),
    Column("unit", "unit", "text", lambda dose, one, *_: one.unit),
    Column("beta", "beta, nats", "number", lambda dose, one, beta, *_: beta),
    Column("value", "value", "interval", lambda dose, one, beta, value, change: value),
    Column("change", "change", "interval", lambda dose, one, beta, value, change: change),
    Column("n", "prompts", "count", lambda dose, one, beta, value, change: value.n),
)
"""Columns of the items of `_at_doses`."""


def _at_doses(
    doses: Sequence[Dose], quantities: Sequence[Quantity], seed: int
) -> Iterator[tuple[Dose, Quantity, float, Interval, Interval]]:
    """Every measure of every target at every dose: the dose in nats, the value, its change."""
    for dose in doses:
        for one in measured(dose, quantities):
            values = at_doses(dose.values[one.name], seed=seed)
            changes = at_doses(dose.change(one.name), seed=seed)
            for beta, value, change in zip(dose.betas, values, changes, strict=True):
                yield dose, one, beta, value, change


def _slopes(found: BoostNumbers) -> Table:
    columns = (
        Column("target", "target", "text", lambda dose, one, slope: dose.target),
        Column("measure", "measure", "text", lambda dose, one, slope: one.title),
        Column("unit", "unit", "text", lambda dose, one, slope: one.slope),
        Column("slope", "slope", "interval", lambda dose, one, slope: slope),
        Column("n", "prompts", "count", lambda dose, one, slope: slope.n),
    )
    items = (
        (dose, one, slope_of(dose, one.name, seed=found.seed))
        for dose in found.doses
        for one in measured(dose, FORCED)
        if one.slope
    )
    return Table.of("slopes", "Slopes of the response", columns, items, _SLOPES_NOTE)


def _pairs(found: BoostNumbers) -> Table:
    columns = (
        Column("first", "target", "text", lambda pair, *_: pair[0].target),
        Column("second", "less", "text", lambda pair, *_: pair[1].target),
        Column("measure", "measure", "text", lambda pair, one, *_: one.title),
        Column("beta", "beta, nats", "number", lambda pair, one, beta, change: beta),
        Column("difference", "difference", "interval", lambda pair, one, beta, change: change),
        Column("n", "prompts", "count", lambda pair, one, beta, change: change.n),
        Column("verdict", "verdict", "text", lambda pair, one, beta, change: side(change)),
    )
    items = (
        (pair, one, beta, change)
        for pair in found.pairs()
        for one in measured(pair[0], FORCED)
        for beta, change in zip(pair[0].betas, less(*pair, one.name, seed=found.seed), strict=True)
        if beta
    )
    return Table.of("pairs", "Targets side by side", columns, items, _PAIRS_NOTE)


def _targets(found: BoostNumbers) -> Table:
    def half(dose: Dose, place: int) -> str:
        return " ".join(found.heads.get(dose.target, ((), ()))[place])

    first = "heads for the first half of the prompts"
    columns = (
        Column("target", "target", "text", lambda dose: dose.target),
        Column("heads", "heads", "count", lambda dose: dose.n_heads),
        Column("about", "where the bias acts", "text", lambda dose: dose.about),
        Column("first_half", first, "text", lambda dose: half(dose, 0)),
        Column("second_half", "heads for the second half", "text", lambda dose: half(dose, 1)),
    )
    return Table.of("targets", "Where the bias acts", columns, found.doses)


def _refused(found: BoostNumbers) -> Table:
    columns = (
        Column("what", "prompt or target", "text", lambda name, reason: name),
        Column("reason", "reason", "text", lambda name, reason: reason),
    )
    items = (*found.refused.items(), *found.skipped.items())
    return Table.of("refused", "Without an answer", columns, items)
