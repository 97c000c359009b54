"""`tempo.heads`: ask every role of every head and put the answers together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tempo.causal.name_effects import inhibition_effect, name_movers
from tempo.causal.silence import delta_nll
from tempo.errors import InputError, TempoError
from tempo.models.circuit_weights import CircuitWeights
from tempo.models.head_weights import circuit_weights, processed_embedding
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.prompts.sequences import (
    LENGTH,
    N_SEQUENCES,
    Corpus,
    bundled_corpus,
    corpus_file,
    corpus_of,
    text_windows,
)
from tempo.prompts.suites import load_suite
from tempo.prompts.tokens import token_facts
from tempo.prompts.word_runs import families
from tempo.run.api import compare
from tempo.run.recorder import model_facts
from tempo.trace.run import Run
from tempo.vocabulary import Head, OnProgress, silent
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import observe
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE, Interval, estimate_with_interval
from tempo_analysis.studies.heads.assignment import (
    RoleScores,
    copying_role,
    successor_role,
    suppression_role,
)
from tempo_analysis.studies.heads.batteries import Reading, read_trace, trace_role
from tempo_analysis.studies.heads.depth import depth_of
from tempo_analysis.studies.heads.detectors.copying import (
    CopySuppression,
    OvCopying,
    copy_suppression,
    ov_copying,
)
from tempo_analysis.studies.heads.detectors.s_inhibition import DirectCopy, direct_copy
from tempo_analysis.studies.heads.detectors.successor import SuccessorOv, order_of, successor_ov
from tempo_analysis.studies.heads.passes import (
    NameCensus,
    TextCensus,
    read_names,
    read_needles,
    read_repeats,
    read_runs,
    read_texts,
)
from tempo_analysis.studies.heads.plan import MORE_ROLES, PASSES, ROLES, Battery, chosen_roles
from tempo_analysis.studies.heads.result import Census

N_TEXTS = 8
LOSS_LENGTH = 64
MOST_HEADS = 48
N_NAME_PROMPTS = 16

_COMMON = ("bos_sink",)
"""Held by most heads of most models: by itself it is no reason to silence one."""


def loss_effects(
    model: LanguageModel, battery: Battery, roles: Mapping[str, RoleScores]
) -> dict[str, Any]:
    """Added loss of each head that holds a role, silenced with zeros, in nats per token.

    Heads that hold nothing but the sink are left out, and so are the weakest beyond `MOST_HEADS`.

    Raises:
        InputError: The corpus is too short.
    """
    held = _holders(roles)
    chosen = held[:MOST_HEADS]
    if not chosen:
        return {"heads": {}, "left_out": 0}
    windows = text_windows(
        battery.facts, battery.corpus, n=N_TEXTS, length=LOSS_LENGTH, seed=battery.seed
    )
    found = delta_nll(model, windows.ids, chosen, batch=N_TEXTS)
    return {
        "texts": N_TEXTS,
        "tokens": LOSS_LENGTH,
        "replacement": found.replacement,
        "base_nll": float(found.base.mean()),
        "heads": {
            str(Head(*head)): _interval(delta, battery.seed)
            for head, delta in zip(found.heads, found.delta, strict=True)
        },
        "left_out": len(held) - len(chosen),
    }


def name_effects(model: LanguageModel, found: NameCensus) -> dict[str, Any]:
    """What heads that look at the repeated name do to the choice of the other one.

    Raises:
        ModelError: No head copies the name.
    """
    assigned = [(int(layer), int(head)) for layer, head in np.argwhere(found.role.assigned)]
    prompts = found.drawn.prompts[:N_NAME_PROMPTS]
    movers = name_movers(model, prompts)
    detail: dict[str, Any] = {"name_movers": [str(Head(*head)) for head in movers]}
    if not assigned:
        return detail
    effect = inhibition_effect(model, prompts, assigned, movers=movers)
    detail["base_logit_difference"] = _interval(effect.base)
    detail["drop"] = {
        str(Head(*head)): {
            "logit_difference": _interval(drop),
            "attention_of_movers": _interval(lost),
        }
        for head, drop, lost in zip(effect.heads, effect.drop, effect.io_drop, strict=True)
    }
    return detail


def _holders(roles: Mapping[str, RoleScores]) -> list[tuple[int, int]]:
    """Heads that hold a role other than the common ones, those of most roles first."""
    counted = {role: found for role, found in roles.items() if role not in _COMMON}
    if not counted:
        return []
    held = np.sum([found.assigned for found in counted.values()], axis=0)
    highest = np.max([np.where(f.assigned, f.percentile, 0.0) for f in counted.values()], axis=0)
    places = [(int(layer), int(head)) for layer, head in np.argwhere(held > 0)]
    return sorted(places, key=lambda place: (-held[place], -highest[place], place))


def _interval(values: Any, seed: int = 0) -> Interval:
    return estimate_with_interval(np.asarray(values, np.float64), seed=seed)


ARM_OF = {
    "sibling_attending": "visible",
    "set_broadcast": "isolated",
    "winner_following": "isolated",
    "set_ignoring": "isolated",
}
"""The arm on which each role is scored: only visible siblings can be attended to."""

N_PROMPTS = 32
STEPS = 8
SUITE = "standard"


def decode_sets(model: LanguageModel, battery: Battery) -> Run:
    """Prompts of the bundled suite under isolated, visible and greedy, with their rows."""
    prompts = list(load_suite(SUITE))
    every = max(len(prompts) // N_PROMPTS, 1)
    return compare(
        model,
        prompts[::every][:N_PROMPTS],
        arms=("isolated", "visible", "greedy"),
        steps=STEPS,
        capture="weights",
        seed=battery.seed,
    )


def read_sets(run: Run, battery: Battery) -> tuple[dict[str, RoleScores], dict[str, str]]:
    """Every parallel role asked for, and why some have no answer."""
    readings = {
        arm: [_read(run, number, arm, battery.seed) for number in range(len(run.prompts))]
        for arm in dict.fromkeys(ARM_OF[role] for role in ARM_OF if role in battery.roles)
    }
    found: dict[str, RoleScores] = {}
    refused: dict[str, str] = {}
    for role in (role for role in ARM_OF if role in battery.roles):
        try:
            found[role] = trace_role(role, readings[ARM_OF[role]], seed=battery.seed)
        except TempoError as error:
            refused[role] = str(error)
    return found, refused


def _read(run: Run, number: int, arm: str, seed: int) -> dict[str, Reading]:
    prompt = run.prompts[number].id
    trace, greedy = run.trace(prompt, arm), run.trace(prompt, "greedy")
    labels = inherited_labels(trace.slots, greedy.slots)
    return read_trace(observe(trace), key=(seed, number), greedy=(observe(greedy), labels))


N_TOKENS = 500
"""Tokens of the sample that copy suppression is judged on."""


@dataclass(frozen=True, slots=True)
class WeightCensus:
    """What the weights say; None where a role was not asked for or was refused.

    Attributes:
        roles: By name.
        refused: Role to reason.
    """

    roles: dict[str, RoleScores]
    refused: dict[str, str]
    copying: OvCopying | None
    successor: SuccessorOv | None
    suppression: CopySuppression | None


def read_weights(model: LanguageModel, battery: Battery) -> WeightCensus:
    """Score the weights.

    Raises:
        ModelError: The family's weights are not known to add up.
    """
    weights = circuit_weights(model)
    roles: dict[str, RoleScores] = {}
    refused: dict[str, str] = {}
    copying, successor, suppression = None, None, None
    if "ov_copying" in battery.roles:
        copying = ov_copying(weights, seed=battery.seed)
        roles["ov_copying"] = copying_role(copying)
    if "successor_ov" in battery.roles:
        try:
            successor = _successor(model, battery, weights)
            roles["successor_ov"] = successor_role(successor)
        except TempoError as error:
            refused["successor_ov"] = str(error)
    if "copy_suppression" in battery.roles:
        sample = processed_embedding(model, _sample(battery))
        suppression = copy_suppression(weights, sample, seed=battery.seed)
        roles["copy_suppression"] = suppression_role(suppression, seed=battery.seed)
    return WeightCensus(roles, refused, copying, successor, suppression)


def name_copying(model: LanguageModel, tokens: Sequence[int]) -> tuple[DirectCopy, DirectCopy]:
    """The OV copy score of names without and with the norms around the head.

    Raises:
        ModelError: The family's weights are not known to add up.
    """
    weights = circuit_weights(model)
    return direct_copy(weights, tokens, norm=False), direct_copy(weights, tokens, norm=True)


def _successor(model: LanguageModel, battery: Battery, weights: CircuitWeights) -> SuccessorOv:
    orders = [order_of(family) for family in families(battery.facts)]
    tokens = sorted({token for order in orders for token in order.tokens})
    return successor_ov(weights, orders, processed_embedding(model, tokens))


def _sample(battery: Battery) -> list[int]:
    """Tokens that the corpus holds, as a sample of what the model meets."""
    held = np.unique(np.array(battery.facts.encode(battery.corpus.text), np.int64))
    rng = np.random.default_rng([battery.seed, *b"suppression"])
    known = np.intersect1d(held, battery.facts.ordinary)
    return sorted(rng.choice(known, min(N_TOKENS, len(known)), replace=False).tolist())


@dataclass(slots=True)
class _Answers:
    """What has been answered so far."""

    roles: dict[str, RoleScores] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)

    def refuse(self, name: str, roles: Sequence[str], error: TempoError) -> None:
        """Note why a pass has no answer, for each role that was asked of it."""
        for role in PASSES[name]:
            if role in roles:
                self.refused[role] = str(error)

    def refuse_untested(self) -> None:
        """Roles that too few sequences have data for are refused, not held by nobody."""
        for role, found in list(self.roles.items()):
            if np.isnan(found.p).all():
                most = int(found.n.max(initial=0))
                self.refused[role] = (
                    f"expected at least {SMALLEST_SAMPLE} sequences with data, got {most} of "
                    f"{len(found.per_sequence)}; take more or longer sequences"
                )
                del self.roles[role]


def heads(
    model: LanguageModel | str | Path,
    *,
    roles: Sequence[str] | None = None,
    corpus: str | Path | None = None,
    texts: Sequence[str] | None = None,
    n: int = N_SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
    check_effects: bool = True,
    on_progress: OnProgress = silent,
) -> Census:
    """Score every attention head for every role, beside chance, null and interval.

    Args:
        model: As `tempo.load_model` takes it.
        roles: Some of `tempo_analysis.studies.heads.plan.ROLES` and `MORE_ROLES`; all where None.
        corpus: A text file to take windows from; Python's own help topics where None.
        texts: Texts of your own to take windows from, instead of a file; they are joined, so a
            window may reach from one text into the next. With few texts, lower `n` or `length`.
        n: Sequences of each kind; at least 8.
        length: Tokens of a text; repeated halves are half as long each.
        seed: Of every draw.
        check_effects: Whether each head with a role is also silenced, to measure the added loss.
        on_progress: Called with the name of each pass before it runs.

    Example:
        >>> census = tempo.heads(model, roles=["induction"])
        >>> census.holders("induction")  # labels such as "L16H0", best first

    Returns:
        A `Census`: scores of every head by role, and `holders(role)` for the heads that hold one.

    Raises:
        InputError: The model has no tokenizer, a role is not known, the corpus is too short, or
            both a corpus and texts are given.
    """
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    text = _corpus(corpus, texts)
    if n < SMALLEST_SAMPLE or length < 16:
        raise InputError(
            f"expected at least {SMALLEST_SAMPLE} sequences of 16 tokens, got {n} of {length}; ask "
            "for more"
        )
    battery = Battery(token_facts(loaded), text, chosen_roles(roles), n, length, seed)
    answers = _Answers()
    for name, ask in _ASKED.items():
        if battery.wants(name):
            on_progress(name)
            _try(name, ask, loaded, battery, answers)
    answers.refuse_untested()
    if not answers.roles:
        raise InputError(f"expected roles that can be asked, got none: {_reasons(answers)}")
    if check_effects:
        on_progress("effects")
        _try_effects(loaded, battery, answers)
    answers.detail["battery"] = _asked_on(battery)
    return Census(
        model=model_facts(loaded),
        roles={role: answers.roles[role] for role in ROLES if role in answers.roles},
        more={role: answers.roles[role] for role in MORE_ROLES if role in answers.roles},
        depth={role: depth_of(found, seed=seed) for role, found in answers.roles.items()},
        refused=answers.refused,
        detail=answers.detail,
    )


def _corpus(corpus: str | Path | None, texts: Sequence[str] | None) -> Corpus:
    """What the windows are taken from."""
    if corpus is not None and texts is not None:
        raise InputError("expected a corpus or texts, got both; leave one out")
    if texts is not None:
        return corpus_of(texts)
    return bundled_corpus() if corpus is None else corpus_file(corpus)


def _try(
    name: str,
    ask: Callable[[LanguageModel, Battery, _Answers], None],
    model: LanguageModel,
    battery: Battery,
    answers: _Answers,
) -> None:
    """A pass that cannot be answered is refused by name; a corpus too short stops everything."""
    try:
        ask(model, battery, answers)
    except TempoError as error:
        if name == "text" and isinstance(error, InputError):
            raise
        answers.refuse(name, battery.roles, error)


def _try_effects(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    """What silencing heads costs; what cannot be said takes nothing from the rest."""
    try:
        answers.detail["effects"] = loss_effects(model, battery, answers.roles)
    except TempoError as error:
        answers.refused["effects"] = str(error)


def _reasons(answers: _Answers) -> str:
    return "; ".join(f"{role}: {reason}" for role, reason in answers.refused.items())


def _ask_text(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    found = read_texts(model, battery)
    answers.roles |= found.roles
    answers.detail |= _text_detail(found)


def _ask_halves(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    answers.roles |= read_repeats(model, battery)


def _ask_runs(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    found = read_runs(model, battery)
    answers.roles["successor_attention"] = found.role
    conditions = ("ordinal", "words", "shuffled", "descending")
    answers.detail["successor_runs"] = {
        "families": [str(family) for family in found.drawn.families],
        "lost_words": list(found.drawn.lost_words),
        "mean": {
            name: np.mean([getattr(run, name).score for run in found.runs], axis=0)
            for name in conditions
        },
    }


def _ask_names(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    found = read_names(model, battery)
    answers.roles["s_inhibition"] = found.role
    answers.detail["names"] = _names_detail(model, found)


def _ask_needles(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    found = read_needles(model, battery)
    answers.roles["retrieval"] = found.role
    answers.detail["needles"] = {"passed": found.n_passed, "trials": found.n_trials}


def _ask_weights(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    found = read_weights(model, battery)
    answers.roles |= found.roles
    answers.refused |= found.refused
    detail: dict[str, Any] = {}
    if found.copying is not None:
        detail["ov_copying_of_the_stream"] = found.copying.stream
        detail["left_out"] = list(found.copying.left_out)
    if found.successor is not None:
        families = zip(found.successor.families, found.successor.by_family, strict=True)
        detail["successor_ov_by_family"] = dict(families)
    if found.suppression is not None:
        detail["suppression_ov"] = found.suppression.ov
        detail["suppression_qk"] = found.suppression.qk
    answers.detail["weights"] = detail


def _ask_parallel(model: LanguageModel, battery: Battery, answers: _Answers) -> None:
    found, refused = read_sets(decode_sets(model, battery), battery)
    answers.roles |= found
    answers.refused |= refused


_ASKED: dict[str, Callable[[LanguageModel, Battery, _Answers], None]] = {
    "text": _ask_text,
    "halves": _ask_halves,
    "runs": _ask_runs,
    "names": _ask_names,
    "needles": _ask_needles,
    "weights": _ask_weights,
    "parallel": _ask_parallel,
}


def _text_detail(found: TextCensus) -> dict[str, Any]:
    return {
        "spectrum": {
            name: {"value": column.value, "chance": column.chance}
            for name, column in found.spectrum.items()
        },
        "funnel": dict(found.funnels),
        "offsets": {
            "profile": found.peaks.profile,
            "even": found.peaks.even,
            "peak": found.peaks.peak,
        },
        "sinks": {
            "rate_percent": found.sinks.percent,
            "epsilon": found.sinks.epsilon,
            "by_head_percent": found.sinks.by_head,
        },
        "receivers_split_half": found.split_half,
        "activations": {
            "largest_over_median": found.activations,
            "channel_of_largest": list(found.massive),
        },
        "nll_nats": {"mean": float(found.nll.mean()), "n": len(found.nll)},
        "texts": {
            "source": found.windows.source,
            "sha256": found.windows.sha256,
            "tokens_in_corpus": found.windows.n_corpus,
            "bos": found.windows.bos,
            "delimiters": list(found.marks.kept),
            "lost_delimiters": list(found.marks.vanished),
        },
    }


def _names_detail(model: LanguageModel, found: NameCensus) -> dict[str, Any]:
    """OV copy scores where the family's weights can be read, causal scores where it can be cut."""
    detail: dict[str, Any] = {"lost_names": list(found.drawn.vanished)}
    try:
        without, norm = name_copying(model, sorted(found.drawn.names.values()))
        detail["ov_copy"] = {"plain": without.score, "with_norms": norm.score}
        candidates = found.role.assigned & (norm.score < 0)
        detail["attends_and_lowers"] = candidates
        detail["effect"] = name_effects(model, found)
    except TempoError as error:
        detail["refused"] = str(error)
    return detail


def _asked_on(battery: Battery) -> dict[str, Any]:
    return {
        "roles": list(battery.roles),
        "sequences": battery.n,
        "length": battery.length,
        "seed": battery.seed,
        "corpus": battery.corpus.source,
        "corpus_sha256": battery.corpus.sha256,
    }
