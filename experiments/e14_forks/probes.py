"""Fork-consequence probes: members of a set with different, known consequences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from experiments.merging import Depths, Fork, Paths
from tempo.models.language_model import LanguageModel

UNKNOWN = "the model does not know the consequences of two members or more"
NO_SINGLE = "a member is not one token"
NOT_DISTINCT = "members or consequences begin with the same token"


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe, as token ids.

    Attributes:
        fork: Its prefix, members of equal weight, and bridge.
        consequences: First token of what should follow each member.
    """

    fork: Fork
    consequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Survival:
    """What a readout holds of the consequences of a probe.

    Attributes:
        mass: Probability of all consequences together.
        share: That of each, renormalised among them.
        recovered: Fraction of the n consequences among the n most probable tokens.
        top: Member whose consequence is the most probable token of all; -1 if none is.
    """

    mass: float
    share: Float64[np.ndarray, " member"]
    recovered: float
    top: int

    @property
    def n_branches(self) -> float:
        """exp of the entropy of the shares."""
        used = self.share[self.share > 0]
        return float(np.exp(-(used * np.log(used)).sum()))


def read_probes(file: Path, model: LanguageModel) -> tuple[list[Probe], dict[str, str]]:
    """The probes that can be put to this model, and why the others cannot, by id."""
    good: list[Probe] = []
    dropped: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        members = [model.encode(text) for text in row["members"]]
        follows = tuple(model.encode(text)[0] for text in row["consequences"])
        heads = tuple(member[0] for member in members)
        n = len(members)
        if any(len(member) > 1 for member in members):
            dropped[row["id"]] = NO_SINGLE
        elif len(set(heads)) < n or len(set(follows)) < n or len(follows) != n:
            dropped[row["id"]] = NOT_DISTINCT
        else:
            prompt, bridge = (tuple(model.encode(row[part])) for part in ("prefix", "bridge"))
            equal = (-float(np.log(n)),) * n
            good.append(Probe(Fork(row["id"], prompt, heads, equal, bridge), follows))
    return good, dropped


def is_known(probe: Probe, paths: Paths) -> bool:
    """Whether all members but one, run alone, prefer their consequence to those of the others."""
    given = paths.rows[-1][:, list(probe.consequences)]
    own = np.diag(given)
    others = np.where(np.eye(len(own), dtype=bool), -np.inf, given).max(1)
    return bool((own > others).sum() >= len(own) - 1)


def survival(probe: Probe, readouts: Depths) -> Survival:
    """What is left of the consequences after the whole bridge."""
    row = readouts[-1]
    tokens = list(probe.consequences)
    probability = np.exp(row[tokens])
    best = np.argsort(-row)[: len(tokens)].tolist()
    return Survival(
        mass=float(probability.sum()),
        share=probability / probability.sum(),
        recovered=float(np.isin(tokens, best).mean()),
        top=tokens.index(best[0]) if best[0] in tokens else -1,
    )


def js_nats(first: Survival, second: Survival) -> float:
    """Jensen-Shannon divergence of the shares of two readouts."""
    both = np.stack([first.share, second.share])
    middle = both.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(both > 0, both * np.log(both / middle), 0.0)
    return max(float(parts.sum(-1).mean()), 0.0)


def known(probes: Sequence[Probe], paths: Sequence[Paths]) -> list[bool]:
    """`is_known` of each."""
    return [is_known(*pair) for pair in zip(probes, paths, strict=True)]
