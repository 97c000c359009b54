"""`tempo.boost`: dose and response of a bias on parallel members."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo.engine.branch import read_prompts
from tempo.errors import InputError, NoParallelSetsError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.policy.edits import Edit, ScoreBias
from tempo.run.options import Options, make_options
from tempo.run.recorder import facts_of_model
from tempo.run.request import PromptInput, check_different, make_request, prompts_from
from tempo.vocabulary import Head, OnProgress, silent
from tempo_analysis.stats.averages import ByHead, mean_over_prompts
from tempo_analysis.studies.boost.dose_matching import Restoring, crossing, restoring
from tempo_analysis.studies.boost.dose_response import Dose, Repair, find
from tempo_analysis.studies.boost.findings import BoostFindings
from tempo_analysis.studies.boost.plan import (
    ALL,
    BANDS,
    CHOSEN,
    CONTROL,
    BoostTarget,
    HeadMask,
    check_targets,
    chosen_targets,
    fixed_target,
    given_target,
    matched_slots,
    member_slots,
)
from tempo_analysis.studies.boost.reference import (
    Reference,
    add_alone,
    add_mixtures,
    decoded,
    odds_law_by_head,
)
from tempo_analysis.studies.boost.replays import (
    FROM_READOUTS,
    FROM_TEXTS,
    ReferenceBatch,
    ReplayedPrompt,
    check_unchanged,
    decode_freely,
    over_heads,
    read_references,
    replay_references,
)

NOTHING = 1e-30
"""Nats. Added to a float32 score it changes nothing, but a bias other than 0 selects the attention
path of edits, so the remaining effect is the rounding of that path."""

PerPrompt = Float64[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True, eq=False)
class BoostStudy:
    """Data shared by all doses and targets.

    Attributes:
        model: The model.
        references: Every prompt that has an answer.
        batches: The references in batches of one half each.
        betas: Doses in nats, rising, 0 among them.
        base: Every reference without a bias, by index.
        options: Of decoding.
        on_progress: Called before each pass.
        in_all_heads: Replays of the target "all", by dose and index; repairs need them.
    """

    model: LanguageModel
    references: tuple[Reference, ...]
    batches: tuple[ReferenceBatch, ...]
    betas: tuple[float, ...]
    base: Mapping[int, ReplayedPrompt]
    options: Options
    on_progress: OnProgress
    in_all_heads: dict[float, dict[int, ReplayedPrompt]]

    def replay(
        self, edits: Callable[[int], Sequence[Edit]], layers: Sequence[int]
    ) -> dict[int, ReplayedPrompt]:
        """Feed every reference again under the edits of its half; results by index."""
        found: dict[int, ReplayedPrompt] = {}
        for batch in self.batches:
            found |= zip(
                batch.places, replay_references(batch, edits(batch.half), layers), strict=True
            )
        return found

    def dose(self, target: BoostTarget) -> Dose:
        """Every dose of one target, on identical tokens."""
        columns: list[dict[str, PerPrompt]] = []
        for beta in self.betas:
            # A dose of 0 is the base itself, not another pass: all changes at 0 are exactly 0.
            found = dict(self.base)
            if beta != 0:
                self.on_progress(f"{target.name}: beta {beta:g}")
                # b=beta: a lambda would otherwise see the last value of the loop
                found = self.replay(lambda half, b=beta: [target.edit(half, b)], _layers(target))
            # Kept for the biases of single heads: those are fitted to doses given to all heads at
            # once.
            if target.name == ALL:
                self.in_all_heads[beta] = found
            columns.append(self.column(target, found))
        values = {name: np.stack([c[name] for c in columns], 1) for name in columns[0]}
        return Dose(target.name, target.about, target.n_heads, self.betas, values)

    def restoring(self, target: BoostTarget, dose: Dose) -> Restoring:
        """The dose that restores the mass that members have alone, in the heads of a target."""
        law = [
            [over_heads(by_head, heads) for by_head in odds_law_by_head(one, self.betas)]
            for one, heads in zip(self.references, self._heads(target), strict=True)
        ]
        return restoring(
            target.name,
            self.betas,
            dose.values["log_ratio"],
            np.array(law, np.float64),
            seed=self.options.seed,
        )

    def rounding(self, target: BoostTarget) -> float:
        """Largest mean KL of a prompt when the edit adds `NOTHING`: the effect of rounding."""
        found = self.replay(lambda half: [target.edit(half, NOTHING)], [])
        return max(one.values["kl"] for one in found.values())

    def free_dose(self, target: BoostTarget) -> Dose:
        """Every dose of one target, decoded freely."""
        columns: list[dict[str, PerPrompt]] = []
        for beta in self.betas:
            self.on_progress(f"{target.name}, freely: beta {beta:g}")
            # No edit at 0, rather than a bias of 0: the plain attention path is the base.
            found = self.decode_freely(lambda half, b=beta: [target.edit(half, b)] if b else [])
            columns.append(self._masked(target, found))
        values = {name: np.stack([c[name] for c in columns], 1) for name in FROM_TEXTS}
        return Dose(target.name, target.about, target.n_heads, self.betas, values)

    def decode_freely(self, edits: Callable[[int], Sequence[Edit]]) -> dict[str, PerPrompt]:
        """Decode every prompt freely under the edits of its half; measures by name."""
        policy = self.options.policy_of("isolated")
        found: dict[int, dict[str, float]] = {}
        for batch in self.batches:
            made = decode_freely(batch, policy, edits(batch.half), steps=self.options.steps)
            found |= zip(batch.places, made, strict=True)
        return {name: self._by_place(lambda n, key=name: found[n][key]) for name in FROM_TEXTS}

    def share_of_half(self, half: int) -> ByHead:
        """Mean share of a row on earlier sets, over the prompts of one half."""
        # even indices are half 0, odd ones half 1, as in `_batches`
        shares = [self.base[n].share for n in range(half, len(self.references), 2)]
        return mean_over_prompts(np.stack(shares))

    def column(
        self, target: BoostTarget, found: Mapping[int, ReplayedPrompt]
    ) -> dict[str, PerPrompt]:
        """Every measure of every prompt under one dose."""
        heads = self._heads(target)
        column = {
            name: self._by_place(lambda n, key=name: found[n].values[key]) for name in FROM_READOUTS
        }
        # The share is read on the slots that are biased, which in the control are others.
        shares = {n: one.matched if target.control else one.share for n, one in found.items()}
        column["share"] = self._by_place(lambda n: over_heads(shares[n], heads[n]))
        column["log_ratio"] = self._by_place(lambda n: over_heads(found[n].log_ratio, heads[n]))
        return self._masked(target, column)

    def _masked(self, target: BoostTarget, column: dict[str, PerPrompt]) -> dict[str, PerPrompt]:
        """Set prompts to NaN in which the control has no slot to act on."""
        if not target.control:
            return column
        acts = np.array([_has_matched(one) for one in self.references])
        return {name: np.where(acts, values, np.nan) for name, values in column.items()}

    def _heads(self, target: BoostTarget) -> list[HeadMask]:
        """The heads of a target for each prompt, by its half."""
        # Parity, as in `_batches`.
        return [target.halves[n % 2] for n in range(len(self.references))]

    def _by_place(self, value: Callable[[int], float]) -> PerPrompt:
        return np.array([value(n) for n in range(len(self.references))], np.float64)


def repairs_of(
    study: BoostStudy,
    everywhere: BoostTarget,
    forced: Sequence[Dose],
    restored: Sequence[Restoring],
    free: Sequence[Dose],
) -> tuple[tuple[Repair, ...], str]:
    """Measure two repairs that restore the mass alone: one bias for all heads, one for each head.

    Args:
        study: The references and their replays.
        everywhere: The target of all heads.
        forced: Doses on identical tokens.
        restored: Restoring doses.
        free: Doses decoded freely; empty if not requested.

    Returns:
        The repairs, and the reason if there are none.
    """
    dose = find(forced, ALL)
    one = next((one for one in restored if one.target == ALL), None)
    if dose is None or one is None:
        return (), f"the target {ALL} was not asked for"
    if np.isnan(one.pooled):
        return (), "no dose asked for brings members to their mass alone on average"
    # The same base as of the doses, so that repairs and doses compare.
    base = {name: values[:, dose.base] for name, values in dose.values.items()}
    text = find(free, ALL)
    if text is not None:
        base |= {name: values[:, text.base] for name, values in text.values.items()}
    halves = [_own_biases(study, half) for half in (0, 1)]
    plans: list[tuple[str, str, Callable[[int], list[Edit]]]] = [
        ("one bias", f"{one.pooled:.3g} nats in all heads", _scalar(everywhere, one.pooled))
    ]
    # One prompt has no other half to fit on.
    if len(study.references) > 1:
        plans.append(("a bias for each head", _about(halves), lambda half: _edits(halves[half])))
    made: list[Repair] = []
    for name, about, edits in plans:
        study.on_progress(f"repairing with {name}")
        found = study.replay(edits, range(study.model.n_layers))
        values = study.column(everywhere, found)
        if text is not None:
            values |= study.decode_freely(edits)
        made.append(Repair(name, about, values, base, _gap(found), _gap(study.base)))
    return tuple(made), ""


def _own_biases(study: BoostStudy, half: int) -> ByHead:
    """For each head the dose that restores its mass; NaN if none does."""
    # fitted on the other half: 1 - half, so that no prompt is repaired by a bias of its own
    places = range(1 - half, len(study.references), 2)
    shape = (study.model.n_layers, study.model.n_heads)
    if not places:
        return np.full(shape, np.nan)
    curves = np.stack(
        [
            mean_over_prompts(np.stack([study.in_all_heads[beta][n].log_ratio for n in places]))
            for beta in study.betas
        ],
        -1,
    )
    found = [crossing(study.betas, one) for one in curves.reshape(-1, len(study.betas))]
    return np.array(found).reshape(shape)


def _scalar(target: BoostTarget, amount: float) -> Callable[[int], list[Edit]]:
    return lambda half: [target.edit(half, amount)]


def _edits(amounts: ByHead) -> list[Edit]:
    """One edit for each head with a known dose."""
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


def _gap(found: Mapping[int, ReplayedPrompt]) -> float:
    """Mean over heads of |mean over prompts of the log ratio|, in nats."""
    mean = mean_over_prompts(np.stack([one.log_ratio for one in found.values()]))
    # The absolute value after the mean over prompts: heads of opposite sign must not cancel.
    return float(np.nanmean(np.abs(mean)))


def _has_matched(one: Reference) -> bool:
    # The last step sees the most slots: if it has none to match, no step has.
    return len(matched_slots(one.table, one.table.n_steps)) > 0


def _layers(target: BoostTarget) -> list[int]:
    """Layers that hold a head of the target, in either half."""
    return sorted({int(n) for half in target.halves for n in np.flatnonzero(half.any(1))})


BETAS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
MOST = 20.0
"""Nats. Beyond it a float32 row has mass on the biased slots only, or none on them."""
TOGETHER = 64
"""References that are replayed together."""


def boost(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    betas: Sequence[float | int] = BETAS,
    targets: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str | Head]] | None = None,
    threshold: float = 0.1,
    steps: int = 10,
    seed: int = 0,
    check_effects: bool = True,
    on_progress: OnProgress = silent,
) -> BoostFindings:
    """Measure what a bias on the attention scores of parallel members does, dose by dose.

    Every prompt is decoded once without a bias; its sets are then fed again under every dose and
    target, so that only the bias changes. The results are compared with that run, with the exact
    mixture of the paths, and with the same bias on an equal number of slots in no set.

    Args:
        model: As `tempo.load_model` takes it.
        prompts: Text, token ids, or several of these.
        betas: Doses in nats, two or more; 0 is added. A bias of beta multiplies what a row pays to
            the slots by exp(beta) before it is normalised.
        targets: Of `tempo_analysis.studies.boost.plan.TARGETS`; all where None.
        groups: More targets: heads by name, such as {"mine": ["L3H5"]}.
        threshold: Tokens with at least this probability enter a set.
        steps: Sets to decode.
        seed: Of the heads drawn for comparison, and of the intervals.
        check_effects: Whether to decode freely under the bias too, in all heads and in the control.
        on_progress: Called with a short text before each pass.

    Returns:
        `BoostFindings`: effects by dose and target, and the dose that restores attention.

    Raises:
        InputError: A dose, a target, a group or a prompt cannot be used.
        NoParallelSetsError: No prompt has a set of two or more with a step after it.
        NumericalError: A bias of 0 changed a readout.

    Example:
        >>> prompts = tempo.load_suite("demo")
        >>> tempo.boost(model, prompts, betas=[-1, 1], groups={"mine": ["L3H5"]})
    """
    doses = check_betas(betas)
    wanted = check_targets(targets, groups)
    loaded = load_model(model)
    options = _options(loaded, threshold=threshold, steps=steps, seed=seed)
    given = {
        name: given_target(name, heads, loaded.n_layers, loaded.n_heads)
        for name, heads in (groups or {}).items()
    }
    study, refused = _study(loaded, prompts, doses, options, on_progress)
    chosen, skipped = _chosen(study, wanted, seed)
    found = {**_fixed(loaded, wanted, skipped), **chosen, **given}
    ordered = [found[name] for name in (*wanted, *given) if name in found]
    everywhere = fixed_target(ALL, loaded.n_layers, loaded.n_heads)
    # Before any dose: if a bias of 0 changes a readout, no other dose can be trusted.
    for batch in study.batches:
        check_unchanged(batch, [everywhere.edit(batch.half, 0.0)])
    forced = tuple(study.dose(target) for target in ordered)
    pairs = zip(ordered, forced, strict=True)
    # Not for the control: it biases other slots, so members have no mass to regain by it.
    restored = tuple(study.restoring(*pair) for pair in pairs if not pair[0].control)
    free = tuple(
        study.free_dose(one) for one in ordered if check_effects and one.name in (ALL, CONTROL)
    )
    repairs, no_repair = repairs_of(study, everywhere, forced, restored, free)
    return BoostFindings(
        betas=doses,
        doses=forced,
        free=free,
        restoring=restored,
        repairs=repairs,
        no_repair=no_repair,
        refused=refused,
        skipped=skipped,
        heads={name: _names(one) for name, one in chosen.items()},
        rounding_nats=study.rounding(everywhere),
        seed=seed,
        **_facts(study),
    )


def check_betas(betas: Sequence[float | int]) -> tuple[float, ...]:
    """The doses, rising, with 0 among them.

    Raises:
        InputError: One is not finite or too large, or fewer than two were given.
    """
    given = [float(beta) for beta in betas]
    wrong = [beta for beta in given if not np.isfinite(beta) or abs(beta) > MOST]
    if wrong:
        raise InputError(
            f"expected finite betas from {-MOST:g} to {MOST:g}, got {wrong[0]:g}; give nats such "
            "as -1,1"
        )
    if len(set(given)) < 2:
        raise InputError(
            f"expected at least two different betas, got {len(set(given))}; give more, such as -1,1"
        )
    # A set: 0 is added once, and repeated doses would break the strictly rising order.
    return tuple(sorted({0.0, *given}))


def _options(model: LanguageModel, *, threshold: float, steps: int, seed: int) -> Options:
    if steps < 2:
        raise InputError(
            f"expected at least 2 steps, got {steps}: a set is seen by the step after it; ask for "
            "more"
        )
    return make_options(
        {
            "model": model.name,
            "dtype": model.dtype,
            "threshold": threshold,
            "steps": steps,
            "seed": seed,
            # Texts of one length: shorter ones would have fewer rows and bigrams for other reasons.
            "eos": "ignore",
        }
    )


def _references(
    model: LanguageModel, prompts: PromptInput | Sequence[PromptInput], options: Options
) -> tuple[list[Reference], dict[str, str]]:
    """References of prompts that have a set, and the reason for each of the others."""
    named, ids = prompts_from(prompts)
    policy = options.policy_of("isolated")
    request = make_request(model, options, named, token_ids=ids, arms={"isolated": policy})
    pairs = [(prompt.id, request.token_ids[prompt.id]) for prompt in named]
    check_different(pairs)
    found, refused = decoded(model, pairs, policy, steps=options.steps)
    if not found:
        raise NoParallelSetsError(
            f"expected a prompt with a set of two or more members and a step after it, got none of "
            f"{len(pairs)}; lower the threshold or decode more steps"
        )
    return found, refused


def _batches(model: LanguageModel, references: Sequence[Reference]) -> tuple[ReferenceBatch, ...]:
    """Read the prompts in batches; even indices are half 0, odd ones half 1, never mixed."""
    made: list[ReferenceBatch] = []
    # A batch has one half only: edits are per batch, and chosen heads differ between halves.
    for half in (0, 1):
        places = range(half, len(references), 2)
        for start in range(0, len(places), TOGETHER):
            some = tuple(places[start : start + TOGETHER])
            ours = tuple(references[place] for place in some)
            trunk = read_prompts(model, [(one.prompt_id, one.ids) for one in ours])
            batch = ReferenceBatch(half, some, ours, trunk)
            read_references(batch)
            add_mixtures(trunk, ours)
            made.append(batch)
    return tuple(made)


def _facts(study: BoostStudy) -> dict[str, Any]:
    """Facts about the references, for the document."""
    references, options = study.references, study.options
    names = ("threshold", "max_width", "steps")
    return {
        "model": facts_of_model(study.model),
        "prompts": tuple(one.prompt_id for one in references),
        "matched": float(np.nanmean([_matched_share(one) for one in references])),
        "n_sets": sum(len(one.wide_steps()) for one in references),
        "tokens_hash": _hash(references),
        "settings": {name: getattr(options, name) for name in names},
    }


def _study(
    model: LanguageModel,
    prompts: PromptInput | Sequence[PromptInput],
    doses: tuple[float, ...],
    options: Options,
    on_progress: OnProgress,
) -> tuple[BoostStudy, dict[str, str]]:
    """Decode all references without a bias."""
    on_progress("decoding without a bias")
    references, refused = _references(model, prompts, options)
    on_progress("decoding every member alone")
    for start in range(0, len(references), TOGETHER):
        add_alone(model, references[start : start + TOGETHER])
    on_progress("running every path of the first sets")
    batches = _batches(model, references)
    on_progress("reading the references")
    base: dict[int, ReplayedPrompt] = {}
    for batch in batches:
        base |= zip(batch.places, replay_references(batch, [], range(model.n_layers)), strict=True)
    return BoostStudy(
        model, tuple(references), batches, doses, base, options, on_progress, {}
    ), refused


def _fixed(
    model: LanguageModel, wanted: Sequence[str], skipped: Mapping[str, str]
) -> dict[str, BoostTarget]:
    """Targets that are the same for all prompts."""
    names = [name for name in wanted if name not in CHOSEN and name not in skipped]
    return {name: fixed_target(name, model.n_layers, model.n_heads) for name in names}


def _chosen(
    study: BoostStudy, wanted: Sequence[str], seed: int
) -> tuple[dict[str, BoostTarget], dict[str, str]]:
    """Targets whose heads are chosen by their attention, and the reason for each skipped target."""
    n_layers = study.model.n_layers
    skipped = {
        name: f"a model of {n_layers} layers has no layer of its own in this third"
        for name in wanted
        if name in BANDS and not fixed_target(name, n_layers, 1).n_heads
    }
    asked = [name for name in wanted if name in CHOSEN]
    if CONTROL in wanted and not any(_matched_share(one) > 0 for one in study.references):
        skipped[CONTROL] = "no prompt has a slot in no set beside slot 0"
    if asked and len(study.references) < 2:
        why = "heads are chosen on the other half of the prompts, and there is only one prompt"
        return {}, skipped | dict.fromkeys(asked, why)
    if not asked:
        return {}, skipped
    found = chosen_targets((study.share_of_half(0), study.share_of_half(1)), seed=seed)
    return {name: found[name] for name in asked}, skipped


def _matched_share(one: Reference) -> float:
    """Slots biased in the control for each biased member, mean over the steps that see a set."""
    # From the first step that sees a set, so that the division below is never by 0.
    steps = range(one.first + 1, one.table.n_steps + 1)
    members = [len(member_slots(one.table, step)) for step in steps]
    matched = [len(matched_slots(one.table, step)) for step in steps]
    return float(np.mean(np.array(matched) / np.array(members)))


def _names(target: BoostTarget) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first, second = (
        tuple(str(Head(*place)) for place in np.argwhere(half).tolist()) for half in target.halves
    )
    return first, second


def _hash(references: Sequence[Reference]) -> str:
    digest = sha256()
    for one in references:
        table = one.table
        # Positions too: the same tokens at other positions are another reference.
        line = f"{one.prompt_id} {table.token.tolist()} {table.position.tolist()}\n"
        digest.update(line.encode())
    return digest.hexdigest()
