"""Runs the doses of one model over its references and puts the prompts together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.boost.doses import Dose, find
from analysis.boost.numbers import Repair
from analysis.boost.restoring import Restoring, crossing, restoring
from tempo.boosting.reference import Reference, law_by_head
from tempo.boosting.replays import READOUTS, Batch, ByHead, Replayed, over_heads, replayed
from tempo.boosting.targets import ALL, Heads, Target, matched_slots
from tempo.boosting.texts import MEASURES, texts
from tempo.models.language_model import LanguageModel
from tempo.policy.edits import Edit, ScoreBias
from tempo.run.options import Options
from tempo.vocabulary import Head
from tempo_analysis.stats.averages import mean_over_prompts

NOTHING = 1e-30
"""Nats; added to a score in float32 it changes nothing, but the edited path is taken."""

Column = Float64[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What stays the same from dose to dose.

    Attributes:
        base: Every reference without a bias, by its place.
        kept: Replays of the target that has all heads, by dose and place: repairs need them.
    """

    model: LanguageModel
    references: tuple[Reference, ...]
    batches: tuple[Batch, ...]
    betas: tuple[float, ...]
    base: Mapping[int, Replayed]
    options: Options
    say: Callable[[str], object]
    kept: dict[float, dict[int, Replayed]]

    def replay(
        self, edits: Callable[[int], Sequence[Edit]], layers: Sequence[int]
    ) -> dict[int, Replayed]:
        """Every reference under the edits of its half."""
        found: dict[int, Replayed] = {}
        for batch in self.batches:
            found |= zip(batch.places, replayed(batch, edits(batch.half), layers), strict=True)
        return found

    def dose(self, target: Target) -> Dose:
        """Every dose of one target."""
        columns: list[dict[str, Column]] = []
        for beta in self.betas:
            found = dict(self.base)
            if beta != 0:
                self.say(f"{target.name}: beta {beta:g}")
                found = self.replay(lambda half, b=beta: [target.edit(half, b)], _layers(target))
            if target.name == ALL:
                self.kept[beta] = found
            columns.append(self.column(target, found))
        values = {name: np.stack([c[name] for c in columns], 1) for name in columns[0]}
        return Dose(target.name, target.about, target.n_heads, self.betas, values)

    def restoring(self, target: Target, dose: Dose) -> Restoring:
        """The dose that gives members the mass back that they have alone, in these heads."""
        law = [
            [over_heads(by_head, heads) for by_head in law_by_head(one, self.betas)]
            for one, heads in zip(self.references, self._heads(target), strict=True)
        ]
        return restoring(
            target.name,
            self.betas,
            dose.values["log_ratio"],
            np.array(law, np.float64),
            seed=self.options.seed,
        )

    def rounding(self, target: Target) -> float:
        """Largest mean KL of a prompt when the edited path adds nothing."""
        found = self.replay(lambda half: [target.edit(half, NOTHING)], [])
        return max(one.values["kl"] for one in found.values())

    def texts(self, target: Target) -> Dose:
        """Decoded freely at every dose of one target."""
        columns: list[dict[str, Column]] = []
        for beta in self.betas:
            self.say(f"{target.name}, freely: beta {beta:g}")
            found = self.written(lambda half, b=beta: [target.edit(half, b)] if b else [])
            columns.append(self._masked(target, found))
        values = {name: np.stack([c[name] for c in columns], 1) for name in MEASURES}
        return Dose(target.name, target.about, target.n_heads, self.betas, values)

    def written(self, edits: Callable[[int], Sequence[Edit]]) -> dict[str, Column]:
        """Every prompt decoded freely under the edits of its half."""
        policy = self.options.policy_of("isolated")
        found: dict[int, dict[str, float]] = {}
        for batch in self.batches:
            made = texts(batch, policy, edits(batch.half), steps=self.options.steps)
            found |= zip(batch.places, made, strict=True)
        return {name: self._by_place(lambda n, key=name: found[n][key]) for name in MEASURES}

    def share_of_half(self, half: int) -> ByHead:
        """Mean share of a row on earlier sets, over the prompts of one half."""
        shares = [self.base[n].share for n in range(half, len(self.references), 2)]
        return mean_over_prompts(np.stack(shares))

    def column(self, target: Target, found: Mapping[int, Replayed]) -> dict[str, Column]:
        """Every measure of every prompt under one dose."""
        heads = self._heads(target)
        column = {
            name: self._by_place(lambda n, key=name: found[n].values[key]) for name in READOUTS
        }
        shares = {n: one.matched if target.control else one.share for n, one in found.items()}
        column["share"] = self._by_place(lambda n: over_heads(shares[n], heads[n]))
        column["log_ratio"] = self._by_place(lambda n: over_heads(found[n].log_ratio, heads[n]))
        return self._masked(target, column)

    def _masked(self, target: Target, column: dict[str, Column]) -> dict[str, Column]:
        """NaN in prompts where the control has no slot to act on."""
        if not target.control:
            return column
        acts = np.array([_has_matched(one) for one in self.references])
        return {name: np.where(acts, values, np.nan) for name, values in column.items()}

    def _heads(self, target: Target) -> list[Heads]:
        """The heads that each prompt's half was given."""
        return [target.halves[n % 2] for n in range(len(self.references))]

    def _by_place(self, value: Callable[[int], float]) -> Column:
        return np.array([value(n) for n in range(len(self.references))], np.float64)


def repairs_of(
    study: Study,
    everywhere: Target,
    forced: Sequence[Dose],
    restored: Sequence[Restoring],
    written: Sequence[Dose],
) -> tuple[tuple[Repair, ...], str]:
    """One bias for all heads, and one for each head, that bring members to their mass alone."""
    dose = find(forced, ALL)
    one = next((one for one in restored if one.target == ALL), None)
    if dose is None or one is None:
        return (), f"the target {ALL} was not asked for"
    if np.isnan(one.pooled):
        return (), "no dose asked for brings members to their mass alone on average"
    base = {name: values[:, dose.base] for name, values in dose.values.items()}
    text = find(written, ALL)
    if text is not None:
        base |= {name: values[:, text.base] for name, values in text.values.items()}
    halves = [_own_biases(study, half) for half in (0, 1)]
    plans: list[tuple[str, str, Callable[[int], list[Edit]]]] = [
        ("one bias", f"{one.pooled:.3g} nats in all heads", _scalar(everywhere, one.pooled))
    ]
    if len(study.references) > 1:
        plans.append(("a bias for each head", _about(halves), lambda half: _edits(halves[half])))
    made: list[Repair] = []
    for name, about, edits in plans:
        study.say(f"repairing with {name}")
        found = study.replay(edits, range(study.model.n_layers))
        values = study.column(everywhere, found)
        if text is not None:
            values |= study.written(edits)
        made.append(Repair(name, about, values, base, _gap(found), _gap(study.base)))
    return tuple(made), ""


def _own_biases(study: Study, half: int) -> ByHead:
    """For each head the dose that restores it on the other half; NaN where none does."""
    places = range(1 - half, len(study.references), 2)
    shape = (study.model.n_layers, study.model.n_heads)
    if not places:
        return np.full(shape, np.nan)
    curves = np.stack(
        [
            mean_over_prompts(np.stack([study.kept[beta][n].log_ratio for n in places]))
            for beta in study.betas
        ],
        -1,
    )
    found = [crossing(study.betas, one) for one in curves.reshape(-1, len(study.betas))]
    return np.array(found).reshape(shape)


def _scalar(target: Target, amount: float) -> Callable[[int], list[Edit]]:
    return lambda half: [target.edit(half, amount)]


def _edits(amounts: ByHead) -> list[Edit]:
    """One edit for each head that has a dose."""
    return [
        ScoreBias(
            heads=[Head(*place)], groups=("earlier_sets",), amount=float(amounts[tuple(place)])
        )
        for place in np.argwhere(~np.isnan(amounts)).tolist()
    ]


def _about(halves: Sequence[ByHead]) -> str:
    known = [half[~np.isnan(half)] for half in halves]
    quarters = np.percentile(np.concatenate(known), [25, 50, 75])
    missing = sum(int(np.isnan(half).sum()) for half in halves)
    return (
        f"its own dose from the other half of the prompts: quartiles {quarters[0]:.3g}, "
        f"{quarters[1]:.3g}, {quarters[2]:.3g} nats; {missing} of {2 * halves[0].size} have none "
        "and get no bias"
    )


def _gap(found: Mapping[int, Replayed]) -> float:
    """Mean over heads of |mean over prompts of the log ratio|."""
    mean = mean_over_prompts(np.stack([one.log_ratio for one in found.values()]))
    return float(np.nanmean(np.abs(mean)))


def _has_matched(one: Reference) -> bool:
    return len(matched_slots(one.table, one.table.n_steps)) > 0


def _layers(target: Target) -> list[int]:
    """Layers whose rows a target is read from."""
    return sorted({int(n) for half in target.halves for n in np.flatnonzero(half.any(1))})
