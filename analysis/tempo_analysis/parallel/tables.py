"""The tables of a run as data, for whoever shows or stores them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tempo.trace.run import Run
from tempo_analysis.parallel.divergence import MEASURES as READOUT_MEASURES
from tempo_analysis.parallel.head_kinds import KINDS, RULE, UNTYPED, HeadTable
from tempo_analysis.parallel.metrics import metric_row
from tempo_analysis.parallel.ratio import Q_BELOW, AttentionRatio, Sink
from tempo_analysis.parallel.run_numbers import ArmResults, RunNumbers
from tempo_analysis.parallel.twins import Twin
from tempo_analysis.report.table import Column, Table
from tempo_analysis.stats.intervals import Curve
from tempo_analysis.stats.verdict import axes_verdict

Row = dict[str, Any]
NONE = float("nan")
MOST_HEADS = 10
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


def ratio_rows(results: RunNumbers) -> Iterator[Row]:
    """The ratio at each step that has data."""
    for arm, found in results.by_arm.items():
        for sink, ratio in found.ratio.items():
            for step in ratio.by_step.x[ratio.by_step.n > 0].tolist():
                null = _at(ratio.null_by_step, step)
                beside = {f"null_{name}": value for name, value in null.items()}
                yield {"arm": arm, "sink": sink, "step": step} | _at(ratio.by_step, step) | beside


def kind_rows(results: RunNumbers) -> list[tuple[str, int, list[int]]]:
    """How many heads of each kind every arm has."""
    tables = {arm: found.heads for arm, found in results.by_arm.items() if found.heads}
    return [(arm, heads.n, list(heads.kind_count().values())) for arm, heads in tables.items()]


def head_rows(results: RunNumbers) -> Iterator[Row]:
    """For each arm the heads that differ most surely from their null, by q, then by distance."""
    for arm, found in results.by_arm.items():
        if "without" in found.ratio and found.heads:
            yield from _surest_heads(arm, found.ratio["without"], found.heads)


def head_sentences(results: RunNumbers) -> list[str]:
    """How many heads of each arm differ from their null."""
    ratios = {arm: found.ratio.get("without") for arm, found in results.by_arm.items()}
    counts = {arm: ratio.heads_off_null() for arm, ratio in ratios.items() if ratio}
    return [
        f"**{arm}**: at q < {Q_BELOW:g}, {lower} heads give sets less than in their null and "
        f"{higher} more, of {tested} tested (ratio without slot 0)."
        for arm, (lower, higher, tested) in counts.items()
    ]


def set_rows(results: RunNumbers) -> list[Row]:
    """Sets, dropped tokens, ends, and mass between siblings."""
    return [_set_row(arm, found) for arm, found in results.by_arm.items()]


def readout_rows(results: RunNumbers) -> Iterator[Row]:
    """Distances of the readouts at each step that has data."""
    for pair, found in results.divergence.items():
        for step in found.js.x[found.js.n > 0].tolist():
            curves = {name: getattr(found, name) for name in READOUT_MEASURES}
            estimates = {name: _at(curve, step)["estimate"] for name, curve in curves.items()}
            yield {"pair": pair, "step": step} | _at(found.js, step) | estimates


def twin_rows(results: RunNumbers) -> list[Row]:
    """What changed in every twin and what followed; a refused one has no number."""
    return [_twin_row(twin, results.twins.get(twin)) for twin in results.replays]


def split_rows(results: RunNumbers) -> Iterator[Row]:
    """Each part of the split, of first sets and of all sets, as a factor of a token alone."""
    for sink, effect in results.set_effects.items():
        for term in SPLIT_TERMS[sink]:
            first, every = (getattr(p.factor, term) for p in (effect.first, effect.all_sets))
            yield {"name": SPLIT_WORDS[term].format(sink=sink), "first": first, "every": every}


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


def _at(curve: Curve, step: int) -> Row:
    """One point of a curve; NaN where it does not reach."""
    place = np.flatnonzero(curve.x == step)
    if not len(place):
        return {"estimate": NONE, "low": NONE, "high": NONE, "n": 0}
    names = ("estimate", "low", "high", "n")
    return {name: getattr(curve, name)[place[0]].item() for name in names}


def _surest_heads(arm: str, ratio: AttentionRatio, heads: HeadTable) -> Iterator[Row]:
    reference = ratio.log_null_by_head if ratio.null.n else np.zeros_like(ratio.log_ratio_by_head)
    distance = np.abs(ratio.log_ratio_by_head - reference)
    order = np.lexsort((-distance.ravel(), ratio.q_value_by_head.ravel()))  # NaN comes last
    known = order[~np.isnan(distance.ravel()[order])]
    names = heads.names()
    for layer, head in zip(*np.unravel_index(known[:MOST_HEADS], distance.shape), strict=True):
        kind = heads.kind[layer, head]
        entropy = "normalised_entropy_without_sink"
        yield {
            "arm": arm,
            "head": str(names[layer][head]),
            "ratio": np.exp(ratio.log_ratio_by_head[layer, head]),
            "null": np.exp(ratio.log_null_by_head[layer, head]),
            "q": ratio.q_value_by_head[layer, head],
            "sink": heads.column("sink")[layer, head],
            "sink_chance": heads.chance_column("sink")[layer, head],
            "entropy": heads.column(entropy)[layer, head],
            "entropy_chance": heads.chance_column(entropy)[layer, head],
            "kind": "no data" if kind == UNTYPED else KINDS[kind],
        }


def _set_row(arm: str, found: ArmResults) -> Row:
    siblings = found.siblings
    return {
        "arm": arm,
        "n_sets": found.widths.n_sets,
        "n_parallel": found.widths.n_parallel_sets,
        "dropped": _counts(found.widths.dropped),
        "stopped": _counts(found.widths.stopped),
        "largest": siblings.largest if siblings else NONE,
        "hidden": siblings.largest_hidden if siblings else NONE,
    }


def _twin_row(name: str, twin: Twin | None) -> Row:
    if twin is None:
        numbers = dict.fromkeys(("without", "with", "js", "cosine", "top_1_overlap"))
        return {"twin": name, "changed": "refused, see above", "n": 0} | numbers
    changed = axes_verdict(twin.axes)
    numbers = {sink: twin.ratio.get(sink) for sink in ("without", "with")}
    numbers |= {name: twin.readouts.get(name) for name in ("js", "cosine", "top_1_overlap")}
    return {"twin": name, "changed": changed, "n": twin.n_prompts} | numbers


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


def _text(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "text")


def _number(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "number")


def _count(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "count")


def _interval(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "interval")


def _rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[Column]) -> tuple[Any, ...]:
    """The cells that have a column; the other values of a row are left out."""
    keys = [column.key for column in columns]
    return tuple({key: row[key] for key in keys} for row in rows)


def _refusals(results: RunNumbers) -> Table:
    columns = (_text("question"), _text("arm"), _text("reason"))
    rows = ({"question": r.question, "arm": r.arm, "reason": r.reason} for r in results.refusals)
    return Table("refusals", "Not answered", "", columns, tuple(rows))


def _facts(run: Run) -> Table:
    rows = ({"fact": fact, "value": value} for fact, value in fact_rows(run).items())
    return Table("facts", "What was run", "", (_text("fact"), _text("value")), tuple(rows))


def _arms(run: Run, results: RunNumbers) -> Table:
    columns = (_text("arm"), _text("role"), _text("policy"))
    rows = ({"arm": a, "role": role, "policy": p} for a, role, p in arm_rows(run, results))
    return Table("arms", "Arms", "", columns, tuple(rows))


def _metrics(results: RunNumbers) -> Table:
    columns = (
        _text("name", "metric"),
        _text("arm"),
        *(_number(key) for key in ("estimate", "low", "high")),
        _count("n", "prompts"),
        *(_number(key) for key in ("chance", "null")),
        *(_text(key) for key in ("verdict", "unit")),
        _text("method", "interval"),
    )
    rows = (
        {**metric_row(metric), "unit": metric.unit, "method": metric.interval.method}
        for metric in results.metrics
    )
    return Table("metrics", "Every number", "", columns, tuple(rows))


def _ratio(results: RunNumbers) -> Table:
    columns = (
        _text("arm"),
        _text("sink", "slot 0"),
        _count("step"),
        _number("estimate", "ratio"),
        _number("low"),
        _number("high"),
        _count("n", "prompts"),
        _number("null_estimate", "null"),
        _number("null_low", "null low"),
        _number("null_high", "null high"),
    )
    rows = _rows(ratio_rows(results), columns)
    return Table("ratio_by_step", "The ratio, step by step", _RATIO_NOTE, columns, rows)


def _kinds(results: RunNumbers) -> Table:
    columns = (_text("arm"), _count("n", "prompts"), *(_count(kind) for kind in KINDS))
    rows = (
        {"arm": arm, "n": n} | dict(zip(KINDS, counts, strict=True))
        for arm, n, counts in kind_rows(results)
    )
    return Table("head_kinds", "Heads", RULE, columns, tuple(rows))


def _heads(results: RunNumbers) -> Table:
    columns = (
        _text("arm"),
        _text("head"),
        _number("ratio"),
        _number("null"),
        _number("q"),
        _number("sink", "sink mass"),
        _number("sink_chance", "chance"),
        _number("entropy", "entropy without slot 0"),
        _number("entropy_chance", "chance"),
        _text("kind"),
    )
    rows = _rows(head_rows(results), columns)
    return Table("heads", "Heads that differ from their null", _HEADS_NOTE, columns, rows)


def _sets(results: RunNumbers) -> Table:
    columns = (
        _text("arm"),
        _count("n_sets", "sets"),
        _count("n_parallel", "of width >= 2"),
        _text("dropped", "left out"),
        _text("stopped", "ended"),
        _number("largest", "largest mass on siblings"),
        _number("hidden", "where none was visible"),
    )
    return Table("sets", "Sets", "", columns, _rows(set_rows(results), columns))


def _twins(results: RunNumbers) -> Table:
    columns = (
        _text("twin"),
        _text("changed", "what changed"),
        _count("n", "prompts"),
        _interval("without", "ratio without slot 0"),
        _interval("with", "ratio with slot 0"),
        _interval("js", "JS"),
        _interval("cosine"),
        _interval("top_1_overlap", "same best token"),
    )
    title = "Twins: the same tokens, one thing changed"
    return Table("twins", title, _TWINS_NOTE, columns, _rows(twin_rows(results), columns))


def _split(results: RunNumbers) -> Table:
    columns = (
        _text("name", "in the set over alone"),
        _interval("first", "first sets"),
        _count("first_n", "prompts"),
        _interval("every", "all sets"),
        _count("every_n", "prompts"),
    )
    rows = (
        row | {"first_n": row["first"].n, "every_n": row["every"].n} for row in split_rows(results)
    )
    return Table("split", SPLIT_TITLE, _SPLIT_NOTE, columns, tuple(rows))


def _readouts(results: RunNumbers) -> Table:
    columns = (
        _text("pair"),
        _count("step"),
        _number("kl_forward", "KL forward"),
        _number("kl_backward", "KL backward"),
        _number("js", "JS"),
        _number("low"),
        _number("high"),
        _number("top_overlap", "top-10 shared"),
        _number("cosine"),
        _number("shared_mass", "shared mass"),
        _count("n", "prompts"),
    )
    are_bounds = any(found.lower_bounds for found in results.divergence.values())
    note = _BOUNDS_NOTE if are_bounds else _EXACT_NOTE
    rows = _rows(readout_rows(results), columns)
    return Table("readouts_by_step", "Readouts on identical tokens", note, columns, rows)
