"""What e04 says: its findings, with the rule that turns intervals into a status."""

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import Row, above, below, listed, outside, said, within

RATIO = "paired_ratio_without_sink"
OWN = ("unique", "swapped")
TINY = ("0.001", "0.01")
SLIGHT = ("0.001", "0.01", "0.1", "0.5")
FARTHEST = "1"
MARGIN = 1.1
TINY_MARGIN = 1.01
SWAP_MARGIN = 1.05
TINY_JS = 1e-4
SAME = (
    "a twin is fed the tokens, sets and weights of the run with shared positions, and a check of "
    "both traces finds nothing changed but "
)


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _sharing(result),
        _offsets(result),
        _tiny(result),
        _repair(result),
        _farther(result),
        _swapped(result),
        _text(result),
    ]


def _twins(result: Result, name: str, changes: tuple[str, ...]) -> dict[str, Row]:
    return {change: metric(result, name, f"isolated|{change}") for change in changes}


def _offset(deltas: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"offset:{delta}" for delta in deltas)


def _sharing(result: Result) -> Finding:
    rows = _twins(result, RATIO, OWN)
    mass = _twins(result, "earlier_set_mass_change", tuple(rows))
    return Finding(
        claim="Members of a set get less weight because they share a position: with positions of "
        "their own they get more.",
        evidence="Weight per set slot over weight per other earlier slot, first token left out, "
        f"as a factor of the same with one shared position: {listed(rows)}. Change of the share "
        f"of a row on earlier sets: {listed(mass)}. {_size(result)}",
        status=status_of(
            all(above(row, MARGIN) for row in rows.values()),
            all(below(row, MARGIN) for row in rows.values()),
        ),
        rule=f"supported if every interval of the factor lies above {MARGIN}; refuted if every "
        f"one lies below {MARGIN}.",
        controls=f"{SAME}positions. In these two arms no two slots share one; later tokens also "
        "stand farther from the sets and the prompt, which small offsets avoid (next entry). "
        "By its form a RoPE score depends on query, key and their distance; no term says that "
        "another key has the same position.",
        published="the cause is RoPE sharing",
        why="weight ratio with positions of their own, as a factor of that with a shared one: "
        + listed(rows),
    )


def _offsets(result: Result) -> Finding:
    rows = _twins(result, RATIO, _offset(SLIGHT))
    js = _twins(result, "readout_js", tuple(rows))
    return Finding(
        claim="Slightly different positions within a set give its members their weight back.",
        evidence="Weight ratio as a factor of that with one shared position, rank r at r delta "
        f"further: {listed(rows)}. JS of the readouts, in nats: {listed(js)}. {_size(result)}",
        status=status_of(
            any(above(row, MARGIN) for row in rows.values()),
            all(below(row, MARGIN) for row in rows.values()),
        ),
        rule=f"supported if the interval of the factor lies above {MARGIN} for any delta up to "
        f"{SLIGHT[-1]}; refuted if it lies below {MARGIN} for all of them.",
        controls=f"{SAME}positions; float32, where the model itself takes fractional positions. "
        "A factor of 1 is no effect.",
        published="slightly offset positions would repair it",
        why=f"weight ratio as a factor of that with a shared position: {listed(rows)}",
    )


def _tiny(result: Result) -> Finding:
    changes = _offset(TINY)
    rows, js = _twins(result, RATIO, changes), _twins(result, "readout_js", changes)
    return Finding(
        claim=f"Offsets of {' and '.join(TINY)} positions change nothing one could measure: "
        f"ratio within {100 * (TINY_MARGIN - 1):.0f} %, JS below {TINY_JS:g} nats.",
        evidence=f"Factor on the weight ratio: {listed(rows)}. JS of the readouts in nats, a lower "
        f"bound from the stored top 256 tokens: {listed(js)}. {_size(result)}",
        status=status_of(
            all(within(row, 1 / TINY_MARGIN, TINY_MARGIN) for row in rows.values())
            and all(below(row, TINY_JS) for row in js.values()),
            any(outside(row, 1 / TINY_MARGIN, TINY_MARGIN) for row in rows.values())
            or any(above(row, TINY_JS) for row in js.values()),
        ),
        rule=f"supported if every factor lies within 1/{TINY_MARGIN} and {TINY_MARGIN} and every "
        f"JS below {TINY_JS:g}, intervals and all; refuted if any interval lies outside.",
        controls=f"{SAME}positions; the smallest offset is far above the spacing of float32 "
        "numbers there, or the run would have been refused.",
    )


def _repair(result: Result) -> Finding:
    rows = _twins(result, RATIO, _offset((*SLIGHT, FARTHEST)))
    return Finding(
        claim=f"No offset, up to a whole position, raises the weight ratio by more than "
        f"{100 * (MARGIN - 1):.0f} %.",
        evidence=f"Factor on the weight ratio: {listed(rows)}. {_size(result)}",
        status=status_of(
            all(below(row, MARGIN) for row in rows.values()),
            any(above(row, MARGIN) for row in rows.values()),
        ),
        rule=f"supported if every interval lies below {MARGIN}; refuted if one lies above.",
        controls=f"{SAME}positions. With an offset of {FARTHEST} a member of rank 1 stands where "
        "the top member of the next set stands, so positions are shared again, between sets.",
    )


def _farther(result: Result) -> Finding:
    rows = _twins(result, RATIO, ("unique", *_offset((FARTHEST,))))
    return Finding(
        claim="Positions of their own, and offsets of a whole position, lower the weight ratio.",
        evidence=f"Factor on the weight ratio: {listed(rows)}. {_size(result)}",
        status=status_of(
            all(below(row, 1) for row in rows.values()),
            any(above(row, 1) for row in rows.values()),
        ),
        rule="supported if both intervals lie below 1; refuted if one lies above.",
        controls=f"{SAME}positions. With offset:{FARTHEST} members of rank 1 and on stand beside "
        "the tokens that follow or ahead of them; with unique all later tokens stand farther away. "
        "Where the two differ, it is by distance.",
    )


def _swapped(result: Result) -> Finding:
    row = metric(result, "paired_ratio_over_unique", "swapped")
    return Finding(
        claim="Which member stands first matters little: the order of own positions, turned "
        f"round, changes the weight ratio by less than {100 * (SWAP_MARGIN - 1):.0f} %.",
        evidence="Weight ratio with the least probable member first over that with the most "
        f"probable first: "
        f"{said(row)}. {_size(result)}",
        status=status_of(
            within(row, 1 / SWAP_MARGIN, SWAP_MARGIN), outside(row, 1 / SWAP_MARGIN, SWAP_MARGIN)
        ),
        rule=f"supported if the interval lies within 1/{SWAP_MARGIN} and {SWAP_MARGIN}; refuted "
        "if it lies outside.",
        controls="the two arms have the same tokens and the same set of positions; only who has "
        "which differs.",
    )


def _text(result: Result) -> Finding:
    js = _twins(result, "readout_js", ("sequential", *OWN, *_offset((*SLIGHT, FARTHEST))))
    others = {name: metric(result, "js_less_text", name) for name in js if name != "sequential"}
    return Finding(
        claim="Of all changes of position, writing the members one after the other as plain text "
        "moves the readouts most.",
        evidence=f"JS of the readouts from those with a shared position, in nats: {listed(js)}. "
        f"Less than plain text, paired by prompt: {listed(others)}. {_size(result)}",
        status=status_of(
            all(below(row, 0) for row in others.values()),
            any(above(row, 0) for row in others.values()),
        ),
        rule="supported if every paired difference lies below 0; refuted if one lies above.",
        controls="plain text changes two things, positions and who sees whom (earlier members are "
        "visible); unique changes the first alone. JS is a lower bound from the stored top 256 "
        "tokens.",
    )


def _size(result: Result) -> str:
    row = metric(result, RATIO, "isolated|unique")
    return f"{row['n']} prompts, {result['n_sets']['isolated']} sets of width >= 2."
