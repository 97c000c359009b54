"""The tables of an ablation: one row for each comparison, layer or offset."""

from collections.abc import Iterator, Mapping

from tempo_analysis.report.table import Column, Table
from tempo_analysis.stats.bands import point_of
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.ablation.effects import NUMBERS, Effect
from tempo_analysis.studies.ablation.offsets import Difference, OffsetFindings
from tempo_analysis.studies.ablation.redundancy import CURVES, Redundancy, Sweep
from tempo_analysis.studies.ablation.result import AblationNumbers
from tempo_analysis.studies.ablation.verdict import DILUTED, SCALE

REST = "rest"


def offset_tables(found: OffsetFindings) -> tuple[Table, ...]:
    """Distributions, their differences, and the heads that change most."""
    return _offsets(found), _differences(found), _changes(found)


def bin_names(n_bins: int) -> list[str]:
    """Offsets in words; the last bin holds the rest."""
    return [*map(str, range(n_bins - 1)), REST]


def _offsets(found: OffsetFindings) -> Table:
    columns = (
        Column("head", "head", "text", lambda one, place, name: str(one.head)),
        Column("condition", "condition", "text", lambda one, place, name: one.condition),
        Column("offset", "offset", "text", lambda one, place, name: name),
        Column("n", "prompts", "count", lambda one, place, name: one.n[place]),
        Column("mean", "attention, mean", "number", lambda one, place, name: one.mean[place]),
        Column("sd", "sd", "number", lambda one, place, name: one.sd[place]),
        Column("even", "even row", "number", lambda one, place, name: found.even[place]),
    )
    items = (
        (one, place, name)
        for one in found.distributions
        for place, name in enumerate(bin_names(len(found.even)))
    )
    note = (
        "Share of the row of t at token t - offset, over the prompts that have one; the rest is "
        "all further tokens."
    )
    return Table.of("offsets", "Where heads look from t", columns, items, note)


def _differences(found: OffsetFindings) -> Table:
    changed = "attention, changed less reference"
    columns = (
        Column("head", "head", "text", lambda one, *_: str(one.head)),
        Column("comparison", "comparison", "text", lambda one, *_: str(one.comparison)),
        Column("offset", "offset", "text", lambda one, name, *_: name),
        Column("n", "prompts", "count", lambda one, name, change, sd: change.n),
        Column("difference", changed, "interval", lambda one, name, change, sd: change),
        Column("sd", "sd", "number", lambda one, name, change, sd: sd),
    )
    note = (
        "Paired over prompts; limits hold at all offsets of a head at once. The row `all` is the "
        "whole row: 0 where rows sum to 1, less what a knock-out after the softmax has lost."
    )
    title = "What changes in where heads look"
    return Table.of("offset_differences", title, columns, _each_difference(found), note)


def _each_difference(found: OffsetFindings) -> Iterator[tuple[Difference, str, Interval, float]]:
    for one in found.differences:
        for place, name in enumerate(bin_names(len(found.even))):
            yield one, name, one.share.at(place), float(one.share.sd[place])
        yield one, "all", one.row, float("nan")


def _changes(found: OffsetFindings) -> Table:
    variation = "half the absolute difference"
    columns = (
        Column("comparison", "comparison", "text", lambda one: str(one.comparison)),
        Column("head", "head", "text", lambda one: str(one.head)),
        Column("n", "prompts", "count", lambda one: one.variation.n),
        Column("variation", variation, "interval", lambda one: one.variation),
    )
    note = (
        "0 = the same row, 1 = no token in common; total variation where both rows sum to 1. The "
        "most changed heads are chosen on the prompts they are measured on, so their numbers are "
        "biased up; then the named heads."
    )
    return Table.of("head_changes", "Heads whose rows change most", columns, found.changes, note)


_LABELS: Mapping[str, str] = {
    "top_1_changed_at_t": "top-1 changed at t, share",
    "top_1_changed_from_t": "top-1 changed, share of tokens from t on",
    "top_1_changed_published": "top-1 changed, share of all tokens (published)",
    "kl_at_t_nats": "KL at t, nats",
    "kl_after_t_nats": "KL after t, mean, nats",
    "kl_published_nats": "KL, mean over all tokens, nats (published)",
}
_BY_LAYER = "limits hold at all layers at once"


def ablation_tables(found: AblationNumbers) -> tuple[Table, ...]:
    """Every table that has rows."""
    tables = (
        _effects(found.effects),
        _effects_by_layer(found.effects),
        _redundancy(found.redundancy),
        _indices(found.redundancy),
        _sweeps(found.sweeps),
        *offset_tables(found.offsets),
    )
    return tuple(table for table in tables if table.rows)


def _effects(effects: tuple[Effect, ...]) -> Table:
    columns = (
        Column("comparison", "comparison", "text", lambda one: str(one.comparison)),
        Column("control", "its control", "text", _control),
        Column("n", "prompts", "count", lambda one: one.numbers["kl_at_t_nats"].n),
        *map(_next_token, NUMBERS),
        *map(_less_control, ("kl_at_t_nats", "top_1_changed_at_t")),
    )
    note = f"Nothing changed is 0 everywhere. {DILUTED[0].upper()}{DILUTED[1:]}."
    return Table.of("effects", "The next token", columns, effects, note)


def _control(effect: Effect) -> str:
    if effect.less_control:
        return effect.less_control.control
    return "is a control" if effect.is_control else ""


def _next_token(name: str) -> Column:
    return Column(name, _LABELS[name], "interval", lambda one: one.numbers[name])


def _less_control(name: str) -> Column:
    def less(effect: Effect) -> Interval | None:
        return effect.less_control.numbers[name] if effect.less_control else None

    return Column(f"{name}_less_control", f"{_LABELS[name]}, less control", "interval", less)


def _effects_by_layer(effects: tuple[Effect, ...]) -> Table:
    def less_control(one: Effect, layer: int) -> Interval | None:
        return one.less_control.nip.at(layer) if one.less_control else None

    columns = (
        Column("comparison", "comparison", "text", lambda one, layer: str(one.comparison)),
        _LAYER,
        *_AGREEMENT,
        Column("nip_less_control", "NIP less control", "interval", less_control),
    )
    items = ((one, layer) for one in effects for layer in one.nip.curve.x.tolist())
    note = f"Attention outputs at t. NIP <b, a> / ||b||^2 and cosine: 1 = unchanged; {_BY_LAYER}."
    return Table.of("effects_by_layer", "Attention outputs by layer", columns, items, note)


def _redundancy(tests: Mapping[str, Redundancy]) -> Table:
    columns = (
        _TEST,
        Column("comparison", "comparison", "text", lambda one, *_: str(one.comparison)),
        _LAYER,
        _ACTS,
        *_AGREEMENT,
    )
    items = (
        (one, layer, name, found)
        for name, found in tests.items()
        for one in found.agreements
        for layer in one.nip.curve.x.tolist()
    )
    note = f"B takes out the values of token t - 1. 1 = unchanged; {_BY_LAYER}."
    return Table.of("redundancy", "Redundancy with the token before", columns, items, note)


def _indices(tests: Mapping[str, Redundancy]) -> Table:
    mean = "R, mean over prompts"
    columns = (
        _TEST,
        Column("scope", "values out in", "text", lambda one, *_: f"{one.scope} heads"),
        _LAYER,
        _ACTS,
        Column("r", "R, pooled", "interval", lambda one, x, *_: point_of(one.pooled, x)),
        Column(
            "r_method", "limits of R", "text", lambda one, x, *_: point_of(one.pooled, x).method
        ),
        Column("r_per_prompt", mean, "interval", lambda one, x, *_: one.per_prompt.at(x)),
        Column(
            "r_per_prompt_n", "prompts with R", "count", lambda one, x, *_: one.per_prompt.at(x).n
        ),
        Column("overlap", "overlap", "interval", lambda one, x, *_: one.overlap.at(x)),
    )
    items = (
        (one, layer, name, found)
        for name, found in tests.items()
        for one in found.indices
        for layer in one.pooled.x.tolist()
    )
    return Table.of("redundancy_index", "Redundancy in one number", columns, items, f"{SCALE}.")


def _sweeps(sweeps: Mapping[str, Sweep]) -> Table:
    columns = (
        Column("sweep", "sweep", "text", lambda one, x, name: name),
        Column("layer", "layer", "count", lambda one, x, name: one.layer),
        Column("offset", "offset", "count", lambda one, x, name: x),
        Column("n", "prompts", "count", lambda one, x, name: one.beyond_a.at(x).n),
        *map(_curve, CURVES),
        Column("beyond_a", "base|AB less base|A", "interval", lambda one, x, _: one.beyond_a.at(x)),
        Column("r", "R, pooled", "interval", lambda one, x, name: point_of(one.pooled, x)),
        Column("overlap", "overlap", "interval", lambda one, x, name: one.overlap.at(x)),
    )
    items = (
        (one, offset, name)
        for name, found in sweeps.items()
        for one in found.layers
        for offset in one.beyond_a.curve.x.tolist()
    )
    note = (
        "B takes out the values of token t - offset. A flat base|AB means that A has captured them "
        "only where base|B differs from 1."
    )
    return Table.of("sweep", "Redundancy by offset", columns, items, note)


def _curve(name: str) -> Column:
    key = name.replace("|", "_").lower()
    return Column(key, f"NIP {name}", "interval", lambda one, x, _: one.nip[name].at(x))


# The items of these columns are (numbers, layer) or (numbers, layer, name of the test, the test).
_TEST = Column("test", "A", "text", lambda one, layer, name, test: name)
_LAYER = Column("layer", "layer", "count", lambda one, layer, *_: layer)
_ACTS = Column(
    "a_acts",
    "A acts here",
    "text",
    lambda one, layer, name, test: "yes" if layer in test.layers else "no",
)
_AGREEMENT = (
    Column("n", "prompts", "count", lambda one, layer, *_: one.nip.at(layer).n),
    Column("nip", "NIP", "interval", lambda one, layer, *_: one.nip.at(layer)),
    Column("nip_sd", "NIP, sd", "number", lambda one, layer, *_: one.nip.sd[layer]),
    Column("cosine", "cosine", "interval", lambda one, layer, *_: one.cosine.at(layer)),
    Column("cosine_sd", "cosine, sd", "number", lambda one, layer, *_: one.cosine.sd[layer]),
)
