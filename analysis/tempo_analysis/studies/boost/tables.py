"""The tables of a boost as data, for whoever shows or stores them."""

from collections.abc import Mapping, Sequence

from tempo_analysis.report.table import Cell, Column, Table
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
    tables = (
        restoring_table(found),
        repairs_table(found),
        _doses("dose_response", "Dose and response", _FORCED_NOTE, found.doses, FORCED, found.seed),
        _doses("free_decoding", "Decoded freely", _FREE_NOTE, found.free, FREE, found.seed),
        _slopes(found),
        _pairs(found),
        _targets(found),
        _refused(found),
    )
    return tuple(table for table in tables if table.rows)


def response_table(found: BoostNumbers, measures: Sequence[str] = ("kl", "set_nll")) -> Table:
    """A few changes of every target, for a short look."""
    quantities = [one for one in FORCED if one.name in measures]
    note = "Change from the run without a bias."
    whole = _doses("response", "Response", note, found.doses, quantities, found.seed)
    kept = [column for column in whole.columns if column.key in ("target", "beta", "measure")]
    kept += [column for column in whole.columns if column.key in ("change", "n")]
    keys = [column.key for column in kept]
    rows = tuple({key: row[key] for key in keys} for row in whole.rows if row["beta"] != 0)
    return Table(whole.name, whole.title, note, tuple(kept), rows)


def restoring_table(found: BoostNumbers) -> Table:
    """The dose that restores the mass alone."""
    columns = (
        Column("target", "target", "text"),
        Column("loss", "log(mass in the set / alone)", "interval"),
        Column("measured", "restoring dose, nats", "interval"),
        Column("law", "by the odds law", "interval"),
        Column("difference", "measured less law", "interval"),
        Column("pooled", "pooled", "number"),
        Column("pooled_law", "pooled law", "number"),
        Column("n", "prompts", "count"),
        Column("without", "prompts without", "count"),
    )
    rows = tuple(
        {
            "target": one.target,
            "loss": one.loss,
            "measured": one.measured,
            "law": one.law,
            "difference": one.difference,
            "pooled": one.pooled,
            "pooled_law": one.pooled_law,
            "n": one.measured.n,
            "without": one.n_without,
        }
        for one in found.restoring
    )
    title = "The dose that gives members their mass alone"
    return Table("restoring", title, _RESTORING_NOTE, columns, rows)


def repairs_table(found: BoostNumbers) -> Table:
    """What happens at that dose."""
    columns = (
        Column("repair", "repair", "text"),
        Column("measure", "measure", "text"),
        Column("unit", "unit", "text"),
        Column("change", "change", "interval"),
        Column("n", "prompts", "count"),
        Column("verdict", "verdict", "text"),
    )
    rows: list[Mapping[str, Cell]] = []
    for one in found.repairs:
        for quantity in (*FORCED, *FREE):
            if quantity.name in one.values:
                change = one.change(quantity.name, seed=found.seed)
                rows.append(
                    {
                        "repair": one.name,
                        "measure": quantity.title,
                        "unit": quantity.unit,
                        "change": change,
                        "n": change.n,
                        "verdict": side(change),
                    }
                )
    return Table("repairs", "Repaired attention", _REPAIRS_NOTE, columns, tuple(rows))


def _doses(
    name: str,
    title: str,
    note: str,
    doses: Sequence[Dose],
    quantities: Sequence[Quantity],
    seed: int,
) -> Table:
    columns = (
        Column("target", "target", "text"),
        Column("measure", "measure", "text"),
        Column("unit", "unit", "text"),
        Column("beta", "beta, nats", "number"),
        Column("value", "value", "interval"),
        Column("change", "change", "interval"),
        Column("n", "prompts", "count"),
    )
    rows: list[Mapping[str, Cell]] = []
    for dose in doses:
        for one in measured(dose, quantities):
            values = at_doses(dose.values[one.name], seed=seed)
            changes = at_doses(dose.change(one.name), seed=seed)
            same = {"target": dose.target, "measure": one.title, "unit": one.unit}
            rows += [
                same | {"beta": beta, "value": value, "change": change, "n": value.n}
                for beta, value, change in zip(dose.betas, values, changes, strict=True)
            ]
    return Table(name, title, note, columns, tuple(rows))


def _slopes(found: BoostNumbers) -> Table:
    columns = (
        Column("target", "target", "text"),
        Column("measure", "measure", "text"),
        Column("unit", "unit", "text"),
        Column("slope", "slope", "interval"),
        Column("n", "prompts", "count"),
    )
    rows: list[Mapping[str, Cell]] = []
    for dose in found.doses:
        for one in measured(dose, FORCED):
            if one.slope:
                slope = slope_of(dose, one.name, seed=found.seed)
                same = {"target": dose.target, "measure": one.title, "unit": one.slope}
                rows.append(same | {"slope": slope, "n": slope.n})
    return Table("slopes", "Slopes of the response", _SLOPES_NOTE, columns, tuple(rows))


def _pairs(found: BoostNumbers) -> Table:
    columns = (
        Column("first", "target", "text"),
        Column("second", "less", "text"),
        Column("measure", "measure", "text"),
        Column("beta", "beta, nats", "number"),
        Column("difference", "difference", "interval"),
        Column("n", "prompts", "count"),
        Column("verdict", "verdict", "text"),
    )
    rows = tuple(
        _pair_row(first, second, one, (beta, row))
        for first, second in found.pairs()
        for one in measured(first, FORCED)
        for beta, row in zip(
            first.betas, less(first, second, one.name, seed=found.seed), strict=True
        )
        if beta
    )
    return Table("pairs", "Targets side by side", _PAIRS_NOTE, columns, rows)


def _pair_row(
    first: Dose, second: Dose, one: Quantity, found: tuple[float, Interval]
) -> Mapping[str, Cell]:
    return {
        "first": first.target,
        "second": second.target,
        "measure": one.title,
        "beta": found[0],
        "difference": found[1],
        "n": found[1].n,
        "verdict": side(found[1]),
    }


def _targets(found: BoostNumbers) -> Table:
    columns = (
        Column("target", "target", "text"),
        Column("heads", "heads", "count"),
        Column("about", "where the bias acts", "text"),
        Column("first_half", "heads for the first half of the prompts", "text"),
        Column("second_half", "heads for the second half", "text"),
    )
    rows = tuple(
        {
            "target": dose.target,
            "heads": dose.n_heads,
            "about": dose.about,
            "first_half": " ".join(found.heads.get(dose.target, ((), ()))[0]),
            "second_half": " ".join(found.heads.get(dose.target, ((), ()))[1]),
        }
        for dose in found.doses
    )
    return Table("targets", "Where the bias acts", "", columns, rows)


def _refused(found: BoostNumbers) -> Table:
    columns = (Column("what", "prompt or target", "text"), Column("reason", "reason", "text"))
    pairs = [*found.refused.items(), *found.skipped.items()]
    rows = tuple({"what": name, "reason": why} for name, why in pairs)
    return Table("refused", "Without an answer", "", columns, rows)
