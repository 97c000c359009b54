"""The tables of an ablation: one row for each comparison, layer or offset."""

from collections.abc import Iterator, Mapping

from tempo_analysis.report.table import Cell, Column, Table
from tempo_analysis.stats.bands import point_of
from tempo_analysis.studies.ablation.effects import NUMBERS, Effect
from tempo_analysis.studies.ablation.offsets import OffsetFindings
from tempo_analysis.studies.ablation.redundancy import CURVES, LayerSweep, Redundancy, Sweep
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
        Column("head", "head", "text"),
        Column("condition", "condition", "text"),
        Column("offset", "offset", "text"),
        Column("n", "prompts", "count"),
        Column("mean", "attention, mean", "number"),
        Column("sd", "sd", "number"),
        Column("even", "even row", "number"),
    )
    rows = tuple(
        {
            "head": str(one.head),
            "condition": one.condition,
            "offset": name,
            "n": int(one.n[place]),
            "mean": float(one.mean[place]),
            "sd": float(one.sd[place]),
            "even": float(found.even[place]),
        }
        for one in found.distributions
        for place, name in enumerate(bin_names(len(found.even)))
    )
    note = (
        "Share of the row of t at token t - offset, over the prompts that have one; the rest is "
        "all further tokens."
    )
    return Table("offsets", "Where heads look from t", note, columns, rows)


def _differences(found: OffsetFindings) -> Table:
    columns = (
        Column("head", "head", "text"),
        Column("comparison", "comparison", "text"),
        Column("offset", "offset", "text"),
        Column("n", "prompts", "count"),
        Column("difference", "attention, changed less reference", "interval"),
        Column("sd", "sd", "number"),
    )
    note = (
        "Paired over prompts; limits hold at all offsets of a head at once. The row `all` is the "
        "whole row: 0 where rows sum to 1, less what a knock-out after the softmax has lost."
    )
    return Table(
        "offset_differences",
        "What changes in where heads look",
        note,
        columns,
        tuple(_difference_rows(found)),
    )


def _difference_rows(found: OffsetFindings) -> Iterator[dict[str, Cell]]:
    for one in found.differences:
        named = {"head": str(one.head), "comparison": str(one.comparison)}
        for place, name in enumerate(bin_names(len(found.even))):
            point, sd = one.share.at(place), float(one.share.sd[place])
            yield {**named, "offset": name, "n": point.n, "difference": point, "sd": sd}
        whole = {"n": one.row.n, "difference": one.row, "sd": float("nan")}
        yield {**named, "offset": "all", **whole}


def _changes(found: OffsetFindings) -> Table:
    columns = (
        Column("comparison", "comparison", "text"),
        Column("head", "head", "text"),
        Column("n", "prompts", "count"),
        Column("variation", "half the absolute difference", "interval"),
    )
    rows = tuple(
        {
            "comparison": str(one.comparison),
            "head": str(one.head),
            "n": one.variation.n,
            "variation": one.variation,
        }
        for one in found.changes
    )
    note = (
        "0 = the same row, 1 = no token in common; total variation where both rows sum to 1. The "
        "most changed heads are chosen on the prompts they are measured on, so their numbers are "
        "biased up; then the named heads."
    )
    return Table("head_changes", "Heads whose rows change most", note, columns, rows)


Row = dict[str, Cell]

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
    columns = [
        Column("comparison", "comparison", "text"),
        Column("control", "its control", "text"),
        Column("n", "prompts", "count"),
        *(Column(name, _LABELS[name], "interval") for name in NUMBERS),
        *(
            Column(f"{name}_less_control", f"{_LABELS[name]}, less control", "interval")
            for name in ("kl_at_t_nats", "top_1_changed_at_t")
        ),
    ]
    note = f"Nothing changed is 0 everywhere. {DILUTED[0].upper()}{DILUTED[1:]}."
    rows = tuple(_effect(one) for one in effects)
    return Table("effects", "The next token", note, tuple(columns), rows)


def _effect(effect: Effect) -> Row:
    less = effect.less_control
    control = less.control if less else ("is a control" if effect.is_control else "")
    return {
        "comparison": str(effect.comparison),
        "control": control,
        "n": effect.numbers["kl_at_t_nats"].n,
        **{name: effect.numbers[name] for name in NUMBERS},
        **{
            f"{name}_less_control": less.numbers[name] if less else None
            for name in ("kl_at_t_nats", "top_1_changed_at_t")
        },
    }


def _effects_by_layer(effects: tuple[Effect, ...]) -> Table:
    columns = (
        Column("comparison", "comparison", "text"),
        Column("layer", "layer", "count"),
        Column("n", "prompts", "count"),
        Column("nip", "NIP", "interval"),
        Column("nip_sd", "NIP, sd", "number"),
        Column("cosine", "cosine", "interval"),
        Column("cosine_sd", "cosine, sd", "number"),
        Column("nip_less_control", "NIP less control", "interval"),
    )
    rows = tuple(
        {
            "comparison": str(one.comparison),
            "layer": layer,
            "n": one.nip.at(layer).n,
            "nip": one.nip.at(layer),
            "nip_sd": float(one.nip.sd[layer]),
            "cosine": one.cosine.at(layer),
            "cosine_sd": float(one.cosine.sd[layer]),
            "nip_less_control": one.less_control.nip.at(layer) if one.less_control else None,
        }
        for one in effects
        for layer in one.nip.curve.x.tolist()
    )
    note = f"Attention outputs at t. NIP <b, a> / ||b||^2 and cosine: 1 = unchanged; {_BY_LAYER}."
    return Table("effects_by_layer", "Attention outputs by layer", note, columns, rows)


def _redundancy(tests: Mapping[str, Redundancy]) -> Table:
    columns = (
        Column("test", "A", "text"),
        Column("comparison", "comparison", "text"),
        Column("layer", "layer", "count"),
        Column("a_acts", "A acts here", "text"),
        Column("n", "prompts", "count"),
        Column("nip", "NIP", "interval"),
        Column("nip_sd", "NIP, sd", "number"),
        Column("cosine", "cosine", "interval"),
        Column("cosine_sd", "cosine, sd", "number"),
    )
    rows = tuple(
        {
            "test": name,
            "comparison": str(one.comparison),
            "layer": layer,
            "a_acts": "yes" if layer in found.layers else "no",
            "n": one.nip.at(layer).n,
            "nip": one.nip.at(layer),
            "nip_sd": float(one.nip.sd[layer]),
            "cosine": one.cosine.at(layer),
            "cosine_sd": float(one.cosine.sd[layer]),
        }
        for name, found in tests.items()
        for one in found.agreements
        for layer in one.nip.curve.x.tolist()
    )
    note = f"B takes out the values of token t - 1. 1 = unchanged; {_BY_LAYER}."
    return Table("redundancy", "Redundancy with the token before", note, columns, rows)


def _indices(tests: Mapping[str, Redundancy]) -> Table:
    columns = (
        Column("test", "A", "text"),
        Column("scope", "values out in", "text"),
        Column("layer", "layer", "count"),
        Column("a_acts", "A acts here", "text"),
        Column("r", "R, pooled", "interval"),
        Column("r_method", "limits of R", "text"),
        Column("r_per_prompt", "R, mean over prompts", "interval"),
        Column("r_per_prompt_n", "prompts with R", "count"),
        Column("overlap", "overlap", "interval"),
    )
    rows = tuple(
        {
            "test": name,
            "scope": f"{one.scope} heads",
            "layer": layer,
            "a_acts": "yes" if layer in found.layers else "no",
            "r": point_of(one.pooled, layer),
            "r_method": point_of(one.pooled, layer).method,
            "r_per_prompt": one.per_prompt.at(layer),
            "r_per_prompt_n": one.per_prompt.at(layer).n,
            "overlap": one.overlap.at(layer),
        }
        for name, found in tests.items()
        for one in found.indices
        for layer in one.pooled.x.tolist()
    )
    return Table("redundancy_index", "Redundancy in one number", f"{SCALE}.", columns, rows)


def _sweeps(sweeps: Mapping[str, Sweep]) -> Table:
    keys = {name: name.replace("|", "_").lower() for name in CURVES}
    columns = (
        Column("sweep", "sweep", "text"),
        Column("layer", "layer", "count"),
        Column("offset", "offset", "count"),
        Column("n", "prompts", "count"),
        *(Column(key, f"NIP {name}", "interval") for name, key in keys.items()),
        Column("beyond_a", "base|AB less base|A", "interval"),
        Column("r", "R, pooled", "interval"),
        Column("overlap", "overlap", "interval"),
    )
    rows = tuple(
        {"sweep": name, "layer": one.layer, **_swept(one, offset, keys)}
        for name, found in sweeps.items()
        for one in found.layers
        for offset in one.beyond_a.curve.x.tolist()
    )
    note = (
        "B takes out the values of token t - offset. A flat base|AB means that A has captured them "
        "only where base|B differs from 1."
    )
    return Table("sweep", "Redundancy by offset", note, columns, rows)


def _swept(one: LayerSweep, offset: int, keys: Mapping[str, str]) -> Row:
    return {
        "offset": offset,
        "n": one.beyond_a.at(offset).n,
        **{key: one.nip[name].at(offset) for name, key in keys.items()},
        "beyond_a": one.beyond_a.at(offset),
        "r": point_of(one.pooled, offset),
        "overlap": one.overlap.at(offset),
    }
