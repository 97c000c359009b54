"""Ask every role of every head and put the answers together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.census.result import Census
from analysis.roles.assignment import RoleScores
from analysis.roles.depth import depth_of
from tempo.census.battery import MORE_ROLES, PASSES, ROLES, Battery, chosen_roles
from tempo.census.effects import loss_effects, name_effects
from tempo.census.parallel import decode_sets, read_sets
from tempo.census.prompts import NameCensus, read_names, read_needles, read_runs
from tempo.census.texts import TextCensus, read_repeats, read_texts
from tempo.census.weights import name_copying, read_weights
from tempo.errors import InputError, TempoError
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.prompts.sequences import LENGTH, N_SEQUENCES, bundled_corpus, corpus_file
from tempo.prompts.tokens import token_facts
from tempo.run.recorder import model_facts
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE

Say = Callable[[str], object]


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
    n: int = N_SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
    effects: bool = True,
    on_pass: Say | None = None,
) -> Census:
    """Score every attention head for every role, beside chance, null and interval.

    Args:
        model: As `tempo.load_model` takes it.
        roles: Some of `tempo.census.battery.ROLES` and `MORE_ROLES`; all where None.
        corpus: A text file to take windows from; Python's own help topics where None.
        n: Sequences of each kind; at least 8.
        length: Tokens of a text; repeated halves are half as long each.
        seed: Of every draw.
        effects: Whether heads that hold a role are silenced as well, to see what that costs.
        on_pass: Told the name of each pass before it begins.

    Raises:
        InputError: The model has no tokenizer, or the corpus is too short.
    """
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    text = bundled_corpus() if corpus is None else corpus_file(corpus)
    if n < SMALLEST_SAMPLE or length < 16:
        raise InputError(
            f"expected at least {SMALLEST_SAMPLE} sequences of 16 tokens, got {n} of {length}; ask "
            "for more"
        )
    battery = Battery(token_facts(loaded), text, chosen_roles(roles), n, length, seed)
    answers = _Answers()
    say = on_pass or _silent
    for name, ask in _ASKED.items():
        if battery.wants(name):
            say(name)
            _try(name, ask, loaded, battery, answers)
    answers.refuse_untested()
    if not answers.roles:
        raise InputError(f"expected roles that can be asked, got none: {_reasons(answers)}")
    if effects:
        say("effects")
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


def _silent(_: str) -> None:
    """Told what is asked, says nothing."""
