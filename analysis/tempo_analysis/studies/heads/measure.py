"""`tempo.heads`: runs every pass of a census on a model and puts the results together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tempo.errors import InputError, TempoError
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.prompts.sequences import (
    LENGTH,
    N_SEQUENCES,
    Corpus,
    bundled_corpus,
    corpus_file,
    corpus_of,
)
from tempo.prompts.tokens import token_facts
from tempo.run.recorder import facts_of_model
from tempo.vocabulary import OnProgress, silent
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE
from tempo_analysis.studies.heads.assignment import RoleScores
from tempo_analysis.studies.heads.depth import depth_of
from tempo_analysis.studies.heads.effects import loss_effects
from tempo_analysis.studies.heads.findings import Census
from tempo_analysis.studies.heads.passes import PASS_FUNCTIONS, Answers
from tempo_analysis.studies.heads.plan import (
    MORE_ROLES,
    PASSES,
    ROLES,
    CensusPlan,
    chosen_roles,
)


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
    plan = CensusPlan(token_facts(loaded), text, chosen_roles(roles), n, length, seed)
    answers = Answers()
    for name in PASS_FUNCTIONS:
        if plan.wants(name):
            on_progress(name)
            answers.add(run_pass(name, loaded, plan))
    _refuse_untested(answers)
    if not answers.roles:
        reasons = "; ".join(f"{role}: {reason}" for role, reason in answers.refused.items())
        raise InputError(f"expected roles that can be asked, got none: {reasons}")
    if check_effects:
        on_progress("effects")
        answers.add(silencing_effects(loaded, plan, answers.roles))
    # "battery" is the name of the format for the options; readers compare it between documents
    answers.detail["battery"] = _options(plan)
    return Census(
        model=facts_of_model(loaded),
        roles={role: answers.roles[role] for role in ROLES if role in answers.roles},
        more={role: answers.roles[role] for role in MORE_ROLES if role in answers.roles},
        depth={role: depth_of(found, seed=seed) for role, found in answers.roles.items()},
        refused=answers.refused,
        detail=answers.detail,
    )


def _corpus(corpus: str | Path | None, texts: Sequence[str] | None) -> Corpus:
    """The text that windows are taken from."""
    if corpus is not None and texts is not None:
        raise InputError("expected a corpus or texts, got both; leave one out")
    if texts is not None:
        return corpus_of(texts)
    return bundled_corpus() if corpus is None else corpus_file(corpus)


def run_pass(name: str, model: LanguageModel, plan: CensusPlan) -> Answers:
    """Run one pass; a pass that fails gives the reason for each of its roles.

    Raises:
        InputError: The corpus is too short. Every role of text needs it, and the caller can give
            another one, so this stops the census.
    """
    try:
        return PASS_FUNCTIONS[name](model, plan)
    except TempoError as error:
        if name == "text" and isinstance(error, InputError):
            raise
        return Answers(refused={role: str(error) for role in PASSES[name] if role in plan.roles})


def silencing_effects(
    model: LanguageModel, plan: CensusPlan, roles: Mapping[str, RoleScores]
) -> Answers:
    """Added loss of silenced heads, or the reason why there is none; the roles stay either way."""
    try:
        return Answers(detail={"effects": loss_effects(model, plan, roles)})
    except TempoError as error:
        return Answers(refused={"effects": str(error)})


def _refuse_untested(answers: Answers) -> None:
    """Move roles that too few sequences have data for from `roles` to `refused`.

    Without this they would read as roles that no head holds.
    """
    for role, found in list(answers.roles.items()):
        if np.isnan(found.p).all():
            most = int(found.n.max(initial=0))
            answers.refused[role] = (
                f"expected at least {SMALLEST_SAMPLE} sequences with data, got {most} of "
                f"{len(found.per_sequence)}; take more or longer sequences"
            )
            del answers.roles[role]


def _options(plan: CensusPlan) -> dict[str, Any]:
    """The options as the document keeps them; equal ones mean that two models read the same."""
    return {
        "roles": list(plan.roles),
        "sequences": plan.n,
        "length": plan.length,
        "seed": plan.seed,
        "corpus": plan.corpus.source,
        "corpus_sha256": plan.corpus.sha256,
    }
