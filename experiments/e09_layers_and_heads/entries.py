"""What e09 says: its findings, with the rule that turns intervals into a status."""

from collections.abc import Iterable

from experiments.e09_layers_and_heads.heads import KIND
from experiments.e09_layers_and_heads.layers import ENTROPIES
from experiments.finding import Finding, Result, metric, status_of
from experiments.limits import Row, number, told
from experiments.thirds import PAIRS, THIRDS, order
from tempo_analysis.stats.verdict import PROMPTS_FOR_A_CLAIM

WITH, WITHOUT = ENTROPIES
FUNNEL = (("middle", "early"), ("middle", "late"), ("early", "late"))
"""The broader third of each pair, as published."""
NULL = "greedy"
SENTENCES = (
    "entropy follows early-mixed, middle-broad, late-focused",
    "heads are long-range, balanced or diffuse by index",
)


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _funnel(result, WITH, "the first token counted"),
        _funnel(result, WITHOUT, "the first token left out"),
        _arms_alike(result),
        _head_index(result),
    ]


def _funnel(result: Result, name: str, sink: str) -> Finding:
    signs = {arm: _signs(result, name, arm) for arm in _arms(result)}
    holds = all(one == 1 for each in signs.values() for one in each)
    fails = any(all(each[place] < 0 for each in signs.values()) for place in range(len(FUNNEL)))
    means = "; ".join(f"{arm} {_thirds(result, name, arm)}" for arm in signs if arm != NULL)
    return Finding(
        claim="Attention is mixed in early layers, broadest in the middle and most focused in "
        f"late layers, {sink}.",
        evidence="Normalised entropy of the greedy run by thirds of the layers, even attention 1: "
        + _listed(f"{third} {told(metric(result, f'{name}_{third}', NULL))}" for third in THIRDS)
        + f". Prompt by prompt, limits for the three at once: {_differences(result, name)}. "
        f"The other arms, early, middle, late: {means}. {_shape(signs).capitalize()}.",
        status=_status(result, holds, fails),
        rule="supported if in every arm the middle third lies above both others and the early "
        "above the late; refuted if one of these three is reversed in every arm.",
        controls="per (layer, head, query) first, over the logarithm of the slots that a query may "
        "see; the greedy arm is ordinary decoding. 'Mixed' is read as between broad and focused.",
        published=SENTENCES[0],
        why=f"{sink}: {_shape(signs)}",
    )


def _arms_alike(result: Result) -> Finding:
    curves = result["detail"]["entropy_less_greedy_by_layer"]
    off = {
        name: {arm: _off_layers(curve, result["layers"]) for arm, curve in each.items()}
        for name, each in curves.items()
    }
    any_off = any(layers for each in off.values() for layers in each.values())
    known = all(None not in curve["low"] for each in curves.values() for curve in each.values())
    text = "; ".join(
        f"{arm} {told(metric(result, f'{name}_less_greedy', arm))}, band off 0 in "
        f"{len(layers)} of {len(result['layers'])} layers, largest difference "
        f"{_largest(curves[name][arm]['estimate'])}"
        for name, each in off.items()
        for arm, layers in each.items()
    )
    parts = text.split("; ")
    n_arms = len(off[WITH])
    return Finding(
        claim="Entropy by layer is the same in every arm.",
        evidence="Normalised entropy less that of the greedy run of the same prompt, first token "
        f"counted: {'; '.join(parts[:n_arms])}. First token left out: "
        f"{'; '.join(parts[n_arms:])}.",
        status=_status(result, known and not any_off, any_off),
        rule="supported if no band leaves 0 in any arm or layer, refuted if one does. Limits hold "
        "in all layers at once, not over arms.",
        controls="arms decode freely, so their tokens and set widths differ; a difference is one "
        "of texts as much as of rules.",
    )


def _head_index(result: Result) -> Finding:
    options = result["options"]
    tests = {arm: each["index"] for arm, each in result["detail"]["heads"].items()}
    p = [one["p"] for each in tests.values() for one in each.values()]
    adjusted = [one["adjusted_p"] for each in tests.values() for one in each.values()]
    own = tests[NULL]
    kinds = result["detail"]["heads"][NULL]
    shares = _listed(
        f"{_words(name)} {100 * one['share']:.2g} % (p = {one['p']:.3g})"
        for name, one in own.items()
    )
    chance, detectable = own[KIND]["chance"], max(one["detectable"] for one in own.values())
    return Finding(
        claim="Heads specialise by index: a head number, over all layers, means something.",
        evidence="Greedy run: of the variance of heads within layers the head number explains "
        f"{shares}; chance is {100 * chance:.2g} %, and {100 * detectable:.2g} % would have had "
        f"p below 0.05 for every one. Over all arms p lies between {min(p):.3g} and {max(p):.3g}. "
        f"{_spreads(kinds['spread'])} Kinds of single heads: {_kinds(kinds['kinds'])}; "
        f"{100 * kinds['same_kind_in_other_half']:.0f} % of heads have the same kind on either "
        f"half of the prompts. {_purest(kinds['kinds_by_index'])}",
        status=_status(
            result,
            min(adjusted) < options["explained_below"],
            min(p) > options["unexplained_above"],
        ),
        rule=f"supported if a measure has p below {options['explained_below']}, adjusted over the "
        f"measures of its arm; refuted if every p, unadjusted, is above "
        f"{options['unexplained_above']} in every arm.",
        controls=f"heads permuted within layers, {options['permutations']} times. Kinds by the "
        "rule of tempo_analysis.parallel.head_kinds, a description; one model of "
        f"{len(result['layers'])} layers. Means over prompts; heads are the sample here.",
        published=SENTENCES[1],
        why=f"head numbers explain {_range([one['share'] for one in own.values()])} of the "
        f"variance within layers, chance {100 * chance:.2g} %",
    )


def _arms(result: Result) -> list[str]:
    return list(result["options"]["arms"])


def _status(result: Result, holds: bool, fails: bool) -> str:
    """Of the numbers, where there are prompts enough for a claim."""
    claims = result["n_prompts"] >= PROMPTS_FOR_A_CLAIM
    return status_of(claims and holds, claims and fails)


def _differences_of(result: Result, name: str, arm: str) -> dict[tuple[str, str], Row]:
    return {pair: metric(result, f"{name}_{pair[0]}_minus_{pair[1]}", arm) for pair in PAIRS}


def _signs(result: Result, name: str, arm: str) -> list[int]:
    """For each pair of the funnel: 1 as published, -1 reversed, 0 not told apart."""
    rows = _differences_of(result, name, arm)
    return [order(rows, *pair, 0) for pair in FUNNEL]


def _thirds(result: Result, name: str, arm: str) -> str:
    return _listed(number(metric(result, f"{name}_{third}", arm)["estimate"]) for third in THIRDS)


def _differences(result: Result, name: str) -> str:
    rows = _differences_of(result, name, NULL)
    return _listed(f"{a} less {b} {told(row)}" for (a, b), row in rows.items())


def _shape(signs: dict[str, list[int]]) -> str:
    """In how many arms each pair is as published, reversed, or not told apart."""
    parts = []
    for place, (broad, narrow) in enumerate(FUNNEL):
        here = [each[place] for each in signs.values()]
        words = {1: "above", 0: "not told apart from", -1: "below"}
        parts += [
            f"{broad} {word} {narrow} in {here.count(sign)}"
            for sign, word in words.items()
            if sign in here
        ]
    return f"of {len(signs)} arms {_listed(parts)}"


def _off_layers(curve: dict[str, list[float | None]], layers: list[int]) -> list[int]:
    limits = zip(layers, curve["low"], curve["high"], strict=True)
    return [
        layer
        for layer, low, high in limits
        if low is not None and high is not None and (low > 0 or high < 0)
    ]


def _largest(values: list[float | None]) -> str:
    known = [abs(value) for value in values if value is not None]
    return f"{max(known):.2g}" if known else "no data"


def _range(shares: list[float]) -> str:
    return f"{100 * min(shares):.2g} to {100 * max(shares):.2g} %"


def _spreads(spread: dict[str, dict[str, float]]) -> str:
    return (
        "Means of a head number over layers against single heads: "
        + _listed(
            f"{_words(name)} {one['lowest_index']:.3g} to {one['highest_index']:.3g} against "
            f"{one['lowest_head']:.2g} to {one['highest_head']:.2g}"
            for name, one in spread.items()
        )
        + "."
    )


def _kinds(kinds: dict[str, int]) -> str:
    return _listed(f"{count} {kind}" for kind, count in kinds.items())


def _purest(by_index: dict[str, dict[str, int]]) -> str:
    count, kind, head = max(
        (count, kind, head) for head, each in by_index.items() for kind, count in each.items()
    )
    n_layers = sum(by_index[head].values())
    return f"The most alike number, {head}, is {kind} in {count} of {n_layers} layers."


def _words(name: str) -> str:
    return name.replace("_without_sink", " without the first token").replace("_", " ")


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
