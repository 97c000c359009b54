"""Chooses the next set from the readout: children in a tree, their order, end of sequence."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from tempo.errors import InputError
from tempo.policy.readout import Children
from tempo.policy.selection import Choice, Dropped, Forced, LogProbability, Select


@dataclass(frozen=True, slots=True)
class Nodes:
    """The members of the last set, each with its own next distribution.

    Attributes:
        path: Log of each node's path probability, renormalised over the paths kept.
    """

    log_probability: Float32[np.ndarray, "node vocab"]
    path: Float32[np.ndarray, " node"]


@dataclass(frozen=True, slots=True)
class Choosing:
    """How a set is chosen: selection rule, kind of children, end of sequence.

    Attributes:
        children: See `tempo.policy.readout.Read`.
        frontier: Largest set where members have children of their own.
        eos: "stop" or "ignore".
    """

    rule: Select
    children: Children = "merged"
    frontier: int = 0
    eos_ids: tuple[int, ...] = ()
    eos: str = "stop"
    prompt_id: str = ""


def choose(
    how: Choosing, log_probability: LogProbability, step: int, nodes: Nodes | None = None
) -> Choice:
    """The set for a step, with the end of sequence handled.

    An end-of-sequence token that ranks first becomes the last set, alone; one that ranks lower is
    left out. With `eos` "ignore" it cannot be selected. Forced tokens are fed as given.

    Args:
        log_probability: The readout.
        nodes: What it was merged from; needed where members have children of their own.
    """
    if how.children == "merged" or how.rule.forced:
        choice = how.rule.select(_allowed(how, log_probability), step, how.prompt_id)
        if how.children != "merged":
            assert nodes is not None
            choice = _forced_children(how.rule, choice, nodes, step)
    else:
        assert nodes is not None
        choice = _children(how, log_probability, nodes, step)
    # The end token is fed alone, so that greedy decoding gives the text of Hugging Face `generate`.
    return choice if how.rule.forced or how.eos == "ignore" else _ended(choice, how.eos_ids)


def _allowed(how: Choosing, log_probability: LogProbability) -> LogProbability:
    if how.eos != "ignore" or how.rule.forced:
        return log_probability
    # -inf, not a removal: token ids stay indices, and the other probabilities stay as they are.
    allowed = log_probability.copy()
    allowed[[token for token in how.eos_ids if token < len(allowed)]] = -np.inf
    return allowed


def _children(how: Choosing, readout: LogProbability, nodes: Nodes, step: int) -> Choice:
    """Children of every node, ordered by path probability, at most `frontier`."""
    if how.children == "all":
        merged = how.rule.select(_allowed(how, readout), step, how.prompt_id)
        found = [
            replace(merged, log_probability=row[merged.token], dropped=())
            for row in nodes.log_probability
        ]
        dropped, margins = merged.dropped, [merged.tau_margin]
    else:
        # A key for each node: with one key for all, every node would draw with the same noise.
        keys = [f"{how.prompt_id}/{number}" for number in range(len(nodes.path))]
        rows = zip(nodes.log_probability, keys, strict=True)
        found = [how.rule.select(_allowed(how, row), step, key) for row, key in rows]
        dropped = tuple(item for choice in found for item in choice.dropped)
        margins = [choice.tau_margin for choice in found]
    parent = np.repeat(np.arange(len(found)), [len(choice.token) for choice in found])
    token = np.concatenate([choice.token for choice in found])
    conditional = np.concatenate([choice.log_probability for choice in found])
    whole = Choice(
        token=token,
        log_probability=conditional,
        dropped=dropped,
        tau_margin=min(margins),
        parent=parent,
        path_log_probability=nodes.path[parent] + conditional,
    )
    # By the probability of the path, then token id, then parent: lexsort's last key comes first.
    order = np.lexsort((parent, token, -(nodes.path[parent] + conditional)))
    kept, cut = order[: how.frontier], order[how.frontier :]
    return replace(_taken(whole, kept), dropped=dropped + _left_out(whole, cut, "max_width"))


def _forced_children(rule: Select, choice: Choice, nodes: Nodes, step: int) -> Choice:
    """Forced tokens as children of the given nodes, or of the only node."""
    assert isinstance(rule, Forced)
    given = rule.parents[step - 1] if rule.parents is not None else (0,) * len(choice.token)
    if (rule.parents is None and len(nodes.path) > 1) or len(given) != len(choice.token):
        raise InputError(
            f"expected the parent of each of {len(choice.token)} forced tokens of step {step}, got "
            f"{0 if rule.parents is None else len(given)}; give Forced(..., parents=...)"
        )
    parent = np.asarray(given, np.int64)
    if parent.min() < 0 or parent.max() >= len(nodes.path):
        raise InputError(
            f"expected parents from 0 to {len(nodes.path) - 1} at step {step}, got {list(given)}"
        )
    conditional = (
        nodes.log_probability[parent, choice.token]
        if rule.log_probabilities is None
        else choice.log_probability
    )
    path = nodes.path[parent] + conditional
    return replace(choice, log_probability=conditional, parent=parent, path_log_probability=path)


def _ended(choice: Choice, eos_ids: tuple[int, ...]) -> Choice:
    is_end = np.isin(choice.token, np.asarray(eos_ids, np.int64))
    if not is_end.any():
        return choice
    # Ranked first, it is the last set, alone; ranked lower, it alone is left out.
    out = np.arange(len(is_end)) > 0 if is_end[0] else is_end
    return replace(
        _taken(choice, np.flatnonzero(~out)),
        dropped=choice.dropped + _left_out(choice, np.flatnonzero(out), "eos"),
        ends=bool(is_end[0]),
    )


def _taken(choice: Choice, members: Int64[np.ndarray, " kept"]) -> Choice:
    parent, path = choice.parent, choice.path_log_probability
    return replace(
        choice,
        token=choice.token[members],
        log_probability=choice.log_probability[members],
        parent=None if parent is None else parent[members],
        path_log_probability=None if path is None else path[members],
    )


def _left_out(
    choice: Choice, members: Int64[np.ndarray, " cut"], reason: str
) -> tuple[Dropped, ...]:
    pairs = zip(choice.token[members], choice.log_probability[members], strict=True)
    return tuple(Dropped(int(token), float(np.exp(logp)), reason) for token, logp in pairs)
