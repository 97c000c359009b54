"""Rows of the tables of a report, taken from results; nothing is computed but their order."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from analysis.divergence import MEASURES as READOUT_MEASURES
from analysis.heads import KINDS, UNTYPED, HeadTable
from analysis.pairing import Twin
from analysis.ratio import Q_BELOW, AttentionRatio, Sink
from analysis.results import ArmResults, Results
from analysis.statistics import Curve
from analysis.verdict import axes_verdict
from tempo.trace.run import Run

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


def arm_rows(run: Run, results: Results) -> list[tuple[str, str, str]]:
    """Name, role and policy of every arm."""
    roles = {arm: "null" if arm == results.greedy else "parallel" for arm in results.arms}
    for twin, source in results.replays.items():
        found = results.twins.get(twin)
        roles[twin] = f"twin of {source}: {axes_verdict(found.axes)}" if found else "refused twin"
    if results.alone:
        roles[f"alone@{results.alone}"] = f"each member of a set of {results.alone} by itself"
    return [(arm, role, _policy(run.policies.get(arm, {}))) for arm, role in roles.items()]


def ratio_rows(results: Results) -> Iterator[Row]:
    """The ratio at each step that has data."""
    for arm, found in results.by_arm.items():
        for sink, ratio in found.ratio.items():
            for step in ratio.by_step.x[ratio.by_step.n > 0].tolist():
                null = _at(ratio.null_by_step, step)
                beside = {f"null_{name}": value for name, value in null.items()}
                yield {"arm": arm, "sink": sink, "step": step} | _at(ratio.by_step, step) | beside


def kind_rows(results: Results) -> list[tuple[str, int, list[int]]]:
    """How many heads of each kind every arm has."""
    tables = {arm: found.heads for arm, found in results.by_arm.items() if found.heads}
    return [(arm, heads.n, list(heads.kind_count().values())) for arm, heads in tables.items()]


def head_rows(results: Results) -> Iterator[Row]:
    """For each arm the heads that differ most surely from their null, by q, then by distance."""
    for arm, found in results.by_arm.items():
        if "without" in found.ratio and found.heads:
            yield from _surest_heads(arm, found.ratio["without"], found.heads)


def head_sentences(results: Results) -> list[str]:
    """How many heads of each arm differ from their null."""
    ratios = {arm: found.ratio.get("without") for arm, found in results.by_arm.items()}
    counts = {arm: ratio.heads_off_null() for arm, ratio in ratios.items() if ratio}
    return [
        f"**{arm}**: at q < {Q_BELOW:g}, {lower} heads give sets less than in their null and "
        f"{higher} more, of {tested} tested (ratio without slot 0)."
        for arm, (lower, higher, tested) in counts.items()
    ]


def set_rows(results: Results) -> list[Row]:
    """Sets, dropped tokens, ends, and mass between siblings."""
    return [_set_row(arm, found) for arm, found in results.by_arm.items()]


def readout_rows(results: Results) -> Iterator[Row]:
    """Distances of the readouts at each step that has data."""
    for pair, found in results.divergence.items():
        for step in found.js.x[found.js.n > 0].tolist():
            curves = {name: getattr(found, name) for name in READOUT_MEASURES}
            estimates = {name: _at(curve, step)["estimate"] for name, curve in curves.items()}
            yield {"pair": pair, "step": step} | _at(found.js, step) | estimates


def twin_rows(results: Results) -> list[Row]:
    """What changed in every twin and what followed; a refused one has no number."""
    return [_twin_row(twin, results.twins.get(twin)) for twin in results.replays]


def split_rows(results: Results) -> Iterator[Row]:
    """Each part of the split, of first sets and of all sets, as a factor of a token alone."""
    for sink, effect in results.set_effects.items():
        for term in SPLIT_TERMS[sink]:
            first, every = (getattr(p.factor, term) for p in (effect.first, effect.all_sets))
            yield {"name": SPLIT_WORDS[term].format(sink=sink), "first": first, "every": every}


def split_sentences(results: Results) -> list[str]:
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


def lattices(run: Run, results: Results) -> dict[str, list[str]]:
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
