"""The tables of a run as data, for whoever shows or stores them."""

from collections.abc import Mapping
from math import nan
from typing import Any

import numpy as np

from tempo.trace.run import Run
from tempo_analysis.parallel.divergence import Divergence
from tempo_analysis.parallel.head_kinds import KINDS, RULE, UNTYPED, HeadTable
from tempo_analysis.parallel.ratio import Q_BELOW, AttentionRatio, Sink
from tempo_analysis.parallel.run_numbers import RunNumbers
from tempo_analysis.parallel.twins import Twin
from tempo_analysis.report.table import Column, Table
from tempo_analysis.stats.bands import point_of
from tempo_analysis.stats.intervals import Curve, Interval
from tempo_analysis.stats.verdict import axes_verdict

_MOST_HEADS = 10
MOST_LATTICES = 20
SPLIT_TERMS: Mapping[Sink, tuple[str, ...]] = {
    "without": (
        *("total", "drift", "competition", "predicted", "elsewhere"),
        *("sink_gain", "set_gain"),
    ),
    "with": ("drift", "competition", "elsewhere"),
}
"""Parts of the split in the order they are shown; with the sink only those that it changes."""

SPLIT_WORDS = {
    "total": "mass of a member = drift x competition",
    "drift": "score drift, {sink} slot 0",
    "competition": "competition, {sink} slot 0",
    "predicted": "dilution that independent odds predict",
    "elsewhere": "competition beyond that, {sink} slot 0",
    "sink_gain": "mass of slot 0",
    "set_gain": "mass of the whole set over that of one member alone",
}
_SETTINGS = ("command", "steps", "threshold", "max_width", "readout", "eos", "level", "seed")


def model_facts(run: Run) -> Mapping[str, Any]:
    """What identifies the model, as recorded."""
    facts = run.settings.get("model_facts")
    return facts if facts is not None else next(iter(run)).header.model


def fact_rows(run: Run) -> dict[str, str]:
    """What was run: model, options, versions."""
    options = {key: run.settings[key] for key in _SETTINGS if run.settings.get(key) is not None}
    model = {f"model {key}": value for key, value in model_facts(run).items() if value is not None}
    versions = {f"{key} version": v for key, v in run.settings.get("versions", {}).items()}
    facts = {"prompts": len(run.prompts)} | model | options | versions
    return {key.replace("_", " "): str(value) for key, value in facts.items()}


def arm_rows(run: Run, results: RunNumbers) -> list[tuple[str, str, str]]:
    """Name, role and policy of every arm."""
    roles = {arm: "null" if arm == results.greedy else "parallel" for arm in results.arms}
    for twin, source in results.replays.items():
        found = results.twins.get(twin)
        roles[twin] = f"twin of {source}: {axes_verdict(found.axes)}" if found else "refused twin"
    if results.alone:
        roles[f"alone@{results.alone}"] = f"each member of a set of {results.alone} by itself"
    return [(arm, role, _policy(run.policies.get(arm, {}))) for arm, role in roles.items()]


def head_sentences(results: RunNumbers) -> list[str]:
    """How many heads of each arm differ from their null."""
    ratios = {arm: found.ratio.get("without") for arm, found in results.by_arm.items()}
    counts = {arm: ratio.heads_off_null() for arm, ratio in ratios.items() if ratio}
    return [
        f"**{arm}**: at q < {Q_BELOW:g}, {lower} heads give sets less than in their null and "
        f"{higher} more, of {tested} tested (ratio without slot 0)."
        for arm, (lower, higher, tested) in counts.items()
    ]


def split_sentences(results: RunNumbers) -> list[str]:
    """The verdict, what the split rests on, and in how many heads a drift is sure."""
    verdicts = [each for each in results.metrics if each.name == "parallel_verdict"]
    sentences = [f"**{each.arm}**: **{each.verdict}**." for each in verdicts]
    effect = results.set_effects.get("without")
    if effect is None:
        return sentences
    down, up, tested = effect.all_sets.heads_off_alone()
    left_out = f"; {effect.n_left_out} sets lack a twin and were left out"
    return [
        *sentences,
        f"{effect.n_sets} sets with {effect.n_members} members were split"
        f"{left_out if effect.n_left_out else ''}.",
        f"At q < {Q_BELOW:g}, {down} heads score members lower in their set than alone and {up} "
        f"higher, of {tested} tested (all sets, without slot 0).",
    ]


def lattices(run: Run, results: RunNumbers) -> dict[str, list[str]]:
    """The sets of the first prompts in one line for each arm, newlines shown."""
    lines: dict[str, list[str]] = {}
    for prompt in run.prompts[:MOST_LATTICES]:
        pairs = [(prompt.id, arm) for arm in results.arms if (prompt.id, arm) in run.traces]
        texts = {arm: run.traces[prompt_id, arm].lattice() for prompt_id, arm in pairs}
        width = max(map(len, texts), default=0)
        lines[prompt.id] = [f"{arm:<{width}}  {_one_line(text)}" for arm, text in texts.items()]
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _policy(rule: Any) -> str:
    """A recorded rule in one line, as `Threshold(tau=0.1, max_width=8)`."""
    if isinstance(rule, Mapping):
        is_change = rule.get("rule") == "Change"
        kept = {k: v for k, v in rule.items() if k != "rule" and not (is_change and v is None)}
        inner = ", ".join(f"{key}={_policy(value)}" for key, value in kept.items())
        return f"{rule.get('rule', '')}({inner})"
    if isinstance(rule, list | tuple):
        return f"[{', '.join(_policy(each) for each in rule)}]"
    return str(rule)


def _one_line(text: str) -> str:
    return "\u21b5".join(text.splitlines())


SPLIT_TITLE = "What a set does to the attention its members get"
_RATIO_NOTE = (
    "Mean weight per earlier slot in sets of width >= 2 over mean weight per other earlier slot, "
    "in the rows of one step. Even attention gives 1. Intervals hold for each step by itself."
)
_HEADS_NOTE = (
    "The heads that differ most surely from their null, by the ratio without slot 0: by q, "
    "adjusted over all heads (Benjamini-Hochberg; a dash means not tested), then by distance from "
    "the null, or from 1 where there is none."
)
_TWINS_NOTE = (
    "What changed is read off the traces: tokens, positions, relation, bias, weights, deaths and "
    "the model were compared slot by slot, and a twin in which anything but its own axis differs "
    "is refused (relation and bias can be compared on the same tokens only). The ratio is weight "
    "per slot of earlier sets over weight per other earlier slot, twin over reference; 1 is no "
    "change. JS (nats), cosine and the share of prompts and steps with the same best token compare "
    "the readouts from the first set of width >= 2 on. Intervals are paired by prompt."
)
_SPLIT_NOTE = (
    "Every member of every set that another set follows was decoded again without its siblings, "
    "everything else forced: alone. For each layer, head and query of the next set, the mass of a "
    "member in its set over its mass alone is exactly score drift times competition. Score drift "
    "is the change of its score relative to the slots of the prompt: below 1, down-weighting. "
    "Competition is the change of the mass on those slots: what the normaliser took. Independent "
    "odds predict competition, hence dilution, from the masses alone. Factors are geometric means; "
    "1 is a token alone. In first sets alone is a plain sequential run."
)
_BOUNDS_NOTE = (
    "KL, JS (nats) and cosine are lower bounds: outcomes that one of the stored lists leaves out "
    "are merged into one. Shared mass near 1 means that they are tight."
)
_EXACT_NOTE = "KL and JS are in nats and exact: whole readouts were stored."


def tables_of(run: Run, results: RunNumbers) -> tuple[Table, ...]:
    """Every table of a run that has a row, in the order of the report."""
    tables = (
        _refusals(results),
        _facts(run),
        _arms(run, results),
        _metrics(results),
        _ratio(results),
        _kinds(results),
        _heads(results),
        _sets(results),
        _twins(results),
        _split(results),
        _readouts(results),
    )
    return tuple(table for table in tables if table.rows)


def _refusals(results: RunNumbers) -> Table:
    columns = (
        Column("question", "question", "text", lambda one: one.question),
        Column("arm", "arm", "text", lambda one: one.arm),
        Column("reason", "reason", "text", lambda one: one.reason),
    )
    return Table.of("refusals", "Not answered", columns, results.refusals)


def _facts(run: Run) -> Table:
    columns = (
        Column("fact", "fact", "text", lambda fact, value: fact),
        Column("value", "value", "text", lambda fact, value: value),
    )
    return Table.of("facts", "What was run", columns, fact_rows(run).items())


def _arms(run: Run, results: RunNumbers) -> Table:
    columns = (
        Column("arm", "arm", "text", lambda arm, role, policy: arm),
        Column("role", "role", "text", lambda arm, role, policy: role),
        Column("policy", "policy", "text", lambda arm, role, policy: policy),
    )
    return Table.of("arms", "Arms", columns, arm_rows(run, results))


def _metrics(results: RunNumbers) -> Table:
    columns = (
        Column("name", "metric", "text", lambda one: one.name),
        Column("arm", "arm", "text", lambda one: one.arm),
        Column("estimate", "estimate", "number", lambda one: one.interval.estimate),
        Column("low", "low", "number", lambda one: one.interval.low),
        Column("high", "high", "number", lambda one: one.interval.high),
        Column("n", "prompts", "count", lambda one: one.interval.n),
        Column("chance", "chance", "number", lambda one: one.chance),
        Column("null", "null", "number", lambda one: one.null),
        Column("verdict", "verdict", "text", lambda one: one.verdict),
        Column("unit", "unit", "text", lambda one: one.unit),
        Column("method", "interval", "text", lambda one: one.interval.method),
    )
    return Table.of("metrics", "Every number", columns, results.metrics)


def _ratio(results: RunNumbers) -> Table:
    """At each step that has data."""
    columns = (
        Column("arm", "arm", "text", lambda arm, *_: arm),
        Column("sink", "slot 0", "text", lambda arm, sink, *_: sink),
        Column("step", "step", "count", lambda arm, sink, step, *_: step),
        Column("estimate", "ratio", "number", lambda arm, sink, step, here, null: here.estimate),
        Column("low", "low", "number", lambda arm, sink, step, here, null: here.low),
        Column("high", "high", "number", lambda arm, sink, step, here, null: here.high),
        Column("n", "prompts", "count", lambda arm, sink, step, here, null: here.n),
        Column(
            "null_estimate", "null", "number", lambda arm, sink, step, here, null: null.estimate
        ),
        Column("null_low", "null low", "number", lambda arm, sink, step, here, null: null.low),
        Column("null_high", "null high", "number", lambda arm, sink, step, here, null: null.high),
    )
    items = (
        (arm, sink, step, point_of(ratio.by_step, step), _at(ratio.null_by_step, step))
        for arm, found in results.by_arm.items()
        for sink, ratio in found.ratio.items()
        for step in _steps(ratio.by_step)
    )
    return Table.of("ratio_by_step", "The ratio, step by step", columns, items, _RATIO_NOTE)


def _kinds(results: RunNumbers) -> Table:
    columns = (
        Column("arm", "arm", "text", lambda arm, heads: arm),
        Column("n", "prompts", "count", lambda arm, heads: heads.n),
        *map(_n_of_kind, KINDS),
    )
    items = ((arm, found.heads) for arm, found in results.by_arm.items() if found.heads)
    return Table.of("head_kinds", "Heads", columns, items, RULE)


def _n_of_kind(kind: str) -> Column:
    return Column(kind, kind, "count", lambda arm, heads: heads.kind_count()[kind])


def _heads(results: RunNumbers) -> Table:
    """For each arm the heads that differ most surely from their null, by q, then by distance."""
    entropy, title = "normalised_entropy_without_sink", "entropy without slot 0"
    columns = (
        Column("arm", "arm", "text", lambda at, heads, ratio, arm: arm),
        Column("head", "head", "text", lambda at, heads, *_: str(heads.names()[at[0]][at[1]])),
        Column(
            "ratio", "ratio", "number", lambda at, _, one, __: np.exp(one.log_ratio_by_head[at])
        ),
        Column("null", "null", "number", lambda at, _, one, __: np.exp(one.log_null_by_head[at])),
        Column("q", "q", "number", lambda at, _, one, __: one.q_value_by_head[at]),
        Column("sink", "sink mass", "number", lambda at, heads, *_: heads.column("sink")[at]),
        _even("sink_chance", "sink"),
        Column("entropy", title, "number", lambda at, heads, *_: heads.column(entropy)[at]),
        _even("entropy_chance", entropy),
        Column("kind", "kind", "text", _kind),
    )
    items = (
        (at, found.heads, found.ratio["without"], arm)
        for arm, found in results.by_arm.items()
        if "without" in found.ratio and found.heads
        for at in _surest_heads(found.ratio["without"])
    )
    return Table.of("heads", "Heads that differ from their null", columns, items, _HEADS_NOTE)


def _even(key: str, measure: str) -> Column:
    return Column(key, "chance", "number", lambda at, heads, *_: heads.chance_column(measure)[at])


def _kind(at: tuple[int, int], heads: HeadTable, *_: Any) -> str:
    return "no data" if heads.kind[at] == UNTYPED else KINDS[heads.kind[at]]


def _surest_heads(ratio: AttentionRatio) -> list[tuple[int, int]]:
    """Places of the heads that differ most surely from the null: by q, then by distance."""
    reference = ratio.log_null_by_head if ratio.null.n else np.zeros_like(ratio.log_ratio_by_head)
    distance = np.abs(ratio.log_ratio_by_head - reference)
    order = np.lexsort((-distance.ravel(), ratio.q_value_by_head.ravel()))  # NaN comes last
    known = order[~np.isnan(distance.ravel()[order])][:_MOST_HEADS].tolist()
    return [divmod(place, distance.shape[1]) for place in known]


def _sets(results: RunNumbers) -> Table:
    """Sets, dropped tokens, ends, and mass between siblings."""
    largest, hidden = "largest mass on siblings", "where none was visible"
    columns = (
        Column("arm", "arm", "text", lambda arm, widths, masses: arm),
        Column("n_sets", "sets", "count", lambda arm, widths, masses: widths.n_sets),
        Column("n_parallel", "of width >= 2", "count", lambda _, one, __: one.n_parallel_sets),
        Column("dropped", "left out", "text", lambda arm, widths, masses: _counts(widths.dropped)),
        Column("stopped", "ended", "text", lambda arm, widths, masses: _counts(widths.stopped)),
        Column("largest", largest, "number", lambda _, __, one: one.largest if one else nan),
        Column("hidden", hidden, "number", lambda _, __, one: one.largest_hidden if one else nan),
    )
    items = ((arm, found.widths, found.siblings) for arm, found in results.by_arm.items())
    return Table.of("sets", "Sets", columns, items)


def _twins(results: RunNumbers) -> Table:
    """What changed in every twin and what followed; a refused one has no number."""
    columns = (
        Column("twin", "twin", "text", lambda name, twin: name),
        Column("changed", "what changed", "text", _changed),
        Column("n", "prompts", "count", lambda name, twin: twin.n_prompts if twin else 0),
        _twin_ratio("without", "ratio without slot 0"),
        _twin_ratio("with", "ratio with slot 0"),
        _twin_readouts("js", "JS"),
        _twin_readouts("cosine", "cosine"),
        _twin_readouts("top_1_overlap", "same best token"),
    )
    items = ((name, results.twins.get(name)) for name in results.replays)
    title = "Twins: the same tokens, one thing changed"
    return Table.of("twins", title, columns, items, _TWINS_NOTE)


def _changed(_: str, twin: Twin | None) -> str:
    return axes_verdict(twin.axes) if twin else "refused, see above"


def _twin_ratio(key: str, heading: str) -> Column:
    return Column(key, heading, "interval", lambda _, one: one.ratio.get(key) if one else None)


def _twin_readouts(key: str, heading: str) -> Column:
    return Column(
        key, heading, "interval", lambda _, twin: twin.readouts.get(key) if twin else None
    )


def _split(results: RunNumbers) -> Table:
    """Each part of the split, of first sets and of all sets, as a factor of a token alone."""
    columns = (
        Column("name", "in the set over alone", "text", lambda name, first, every: name),
        Column("first", "first sets", "interval", lambda name, first, every: first),
        Column("first_n", "prompts", "count", lambda name, first, every: first.n),
        Column("every", "all sets", "interval", lambda name, first, every: every),
        Column("every_n", "prompts", "count", lambda name, first, every: every.n),
    )
    items = (
        (
            SPLIT_WORDS[term].format(sink=sink),
            getattr(effect.first.factor, term),
            getattr(effect.all_sets.factor, term),
        )
        for sink, effect in results.set_effects.items()
        for term in SPLIT_TERMS[sink]
    )
    return Table.of("split", SPLIT_TITLE, columns, items, _SPLIT_NOTE)


def _readouts(results: RunNumbers) -> Table:
    """Distances of the readouts at each step that has data."""
    columns = (
        Column("pair", "pair", "text", lambda pair, step, found, js: pair),
        Column("step", "step", "count", lambda pair, step, found, js: step),
        _distance("kl_forward", "KL forward"),
        _distance("kl_backward", "KL backward"),
        _distance("js", "JS"),
        Column("low", "low", "number", lambda pair, step, found, js: js.low),
        Column("high", "high", "number", lambda pair, step, found, js: js.high),
        _distance("top_overlap", "top-10 shared"),
        _distance("cosine", "cosine"),
        _distance("shared_mass", "shared mass"),
        Column("n", "prompts", "count", lambda pair, step, found, js: js.n),
    )
    items = (
        (pair, step, found, point_of(found.js, step))
        for pair, found in results.divergence.items()
        for step in _steps(found.js)
    )
    are_bounds = any(found.lower_bounds for found in results.divergence.values())
    note = _BOUNDS_NOTE if are_bounds else _EXACT_NOTE
    return Table.of("readouts_by_step", "Readouts on identical tokens", columns, items, note)


def _distance(name: str, heading: str) -> Column:
    def estimate(_: str, step: int, found: Divergence, __: Interval) -> float:
        return _at(getattr(found, name), step).estimate

    return Column(name, heading, "number", estimate)


def _steps(curve: Curve) -> list[int]:
    """Those with data."""
    return curve.x[curve.n > 0].tolist()


def _at(curve: Curve, step: int) -> Interval:
    """One point of a curve; NaN where it does not reach."""
    return point_of(curve, step) if step in curve.x else Interval(nan, nan, nan, 0, "no data")
