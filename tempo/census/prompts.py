"""The passes over made prompts: runs of ordered words, two names, a needle in a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

from analysis.roles import retrieval, s_inhibition, successor_attention
from analysis.roles.assignment import RoleScores, judged, role_scores
from analysis.roles.retrieval import RetrievalTrial
from analysis.roles.rows import ByHead, HeadScore, SequenceRows, chances_of, scores_of
from analysis.roles.successor_attention import SuccessorRun, successor_run
from tempo.causal.forward import Ids, PlainRows, plain_rows
from tempo.census.battery import Battery
from tempo.errors import TooFewPromptsError
from tempo.models.language_model import LanguageModel
from tempo.prompts.names import NamePrompts, name_prompts
from tempo.prompts.needles import NeedlePrompt, needle_prompts
from tempo.prompts.word_runs import CONDITIONS, WordRuns, word_runs
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE

N_NEEDLES = 24


@dataclass(frozen=True, slots=True)
class SuccessorCensus:
    """The attention half of the successor role.

    Attributes:
        role: Ordinal less words, held against the same with the ordinals shuffled.
        runs: Every run under its four conditions.
        drawn: What the tokenizer left of the families.
    """

    role: RoleScores
    runs: tuple[SuccessorRun, ...]
    drawn: WordRuns


@dataclass(frozen=True, slots=True)
class NameCensus:
    """The attention half of S-inhibition.

    Attributes:
        role: Weight from the end to the second subject, held against a third name there.
        drawn: The prompts, for the causal score.
    """

    role: RoleScores
    drawn: NamePrompts


@dataclass(frozen=True, slots=True)
class NeedleCensus:
    """Retrieval.

    Attributes:
        role: Over trials that the model passed.
        n_passed: How many those are.
        n_trials: Of all.
    """

    role: RoleScores
    n_passed: int
    n_trials: int


def read_runs(model: LanguageModel, battery: Battery) -> SuccessorCensus:
    """Attention from each ordinal to the one before it.

    Raises:
        InputError: The tokenizer keeps no family.
    """
    drawn = word_runs(battery.facts, n=battery.n, seed=battery.seed)
    every = [run for condition in CONDITIONS for run in drawn.runs[condition]]
    pairs: dict[str, dict[tuple[int, int], list[ByHead]]] = {each: {} for each in CONDITIONS}

    def scored(number: int, rows: SequenceRows) -> HeadScore:
        run = every[number]
        for before, after in pairwise(run.elements.tolist()):
            tokens = (int(run.ids[before]), int(run.ids[after]))
            paid = rows.weights[:, :, after, before].astype(np.float64)
            pairs[run.condition].setdefault(tokens, []).append(paid)
        return successor_attention.successor_attention(rows, run.elements)

    scores = _scored(model, [run.ids for run in every], scored)
    ordinal, words, shuffled, descending = np.split(np.array(scores, object), len(CONDITIONS))
    runs = [
        successor_run(one, words=control, shuffled=mixed, descending=back)
        for one, control, mixed, back in zip(ordinal, words, shuffled, descending, strict=True)
    ]
    return SuccessorCensus(_successor_role(runs, pairs, battery.seed), tuple(runs), drawn)


def _successor_role(
    runs: Sequence[SuccessorRun],
    pairs: Mapping[str, Mapping[tuple[int, int], Sequence[ByHead]]],
    seed: int,
) -> RoleScores:
    """The role, tested over distinct pairs of words and not over runs.

    Runs of one family repeat the same pairs, so a head's taste for a few of them would count again
    in every run. Over pairs, such tastes are the noise that a true one must stand out of.
    """
    signals, nulls = [run.signal() for run in runs], [run.null() for run in runs]
    ordered, mixed = (
        np.stack([np.mean(each, axis=0) for each in pairs[name].values()])
        for name in ("ordinal", "shuffled")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.asarray(stats.ttest_ind(ordered, mixed, equal_var=False, alternative="greater")[1])
    values, chances = scores_of(signals), chances_of(signals)
    return judged(
        "successor_attention",
        values.mean(0),
        chances.mean(0),
        per_sequence=values,
        control=scores_of(nulls) - chances_of(nulls) + chances,
        p=np.where(np.isnan(p), 1.0, p),
        threshold=successor_attention.THRESHOLD,
        unit="difference of shares, ordinal less words",
        seed=seed,
    )


def read_names(model: LanguageModel, battery: Battery) -> NameCensus:
    """Attention from the end to the repeated name.

    Raises:
        InputError: Too few names are one token.
    """
    drawn = name_prompts(battery.facts, n=battery.n, seed=battery.seed)
    every = [*drawn.prompts, *drawn.controls]
    scores = _scored(
        model,
        [prompt.ids for prompt in every],
        lambda number, rows: s_inhibition.s_inhibition(
            rows, end=every[number].end, second_subject=every[number].s2
        ),
    )
    role = role_scores(
        "s_inhibition",
        scores[: battery.n],
        scores[battery.n :],
        threshold=s_inhibition.THRESHOLD,
        seed=battery.seed,
    )
    return NameCensus(role, drawn)


def read_needles(model: LanguageModel, battery: Battery) -> NeedleCensus:
    """What each head looks at while the needle is copied out.

    The answer is fed, and the model's own choices before each of its tokens count as written.

    Raises:
        InputError: The corpus is too short.
        TooFewPromptsError: The model passed fewer than 8 trials.
    """
    prompts = needle_prompts(battery.facts, battery.corpus, n=N_NEEDLES, seed=battery.seed)
    rows = plain_rows(model, [prompt.ids for prompt in prompts], extras=("predictions",))
    trials = [
        _trial(prompt, one, key=(battery.seed, number))
        for number, (prompt, one) in enumerate(zip(prompts, rows, strict=True))
    ]
    n_passed = sum(each.recall > retrieval.SMALLEST_RECALL for each in trials)
    if n_passed < SMALLEST_SAMPLE:
        raise TooFewPromptsError(
            f"expected at least {SMALLEST_SAMPLE} needles that the model copies out, got "
            f"{n_passed} of {len(trials)}; this model cannot be asked for retrieval"
        )
    role = role_scores(
        "retrieval",
        [each.hits for each in trials],
        [each.null for each in trials],
        threshold=retrieval.THRESHOLD,
        unit="share of the needle",
        seed=battery.seed,
    )
    return NeedleCensus(role, n_passed, len(trials))


def _trial(prompt: NeedlePrompt, one: PlainRows, *, key: tuple[int, int]) -> RetrievalTrial:
    assert one.predictions is not None
    asked = prompt.ids[: prompt.answered[0] + 1]
    looked = one.weights[:, :, prompt.answered].transpose(2, 0, 1, 3)
    span = (int(prompt.needle[0]), int(prompt.needle[-1]) + 1)
    written = one.predictions.best[prompt.answered]
    return retrieval.retrieval(
        asked, np.ascontiguousarray(looked), written=written, needle=span, key=key
    )


def _scored(
    model: LanguageModel, ids: Sequence[Ids], score: Callable[[int, SequenceRows], HeadScore]
) -> list[HeadScore]:
    """The score of every prompt, in the order given; those of one length run together."""
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    found: dict[int, HeadScore] = {}
    for number, one in zip(order, plain_rows(model, [ids[n] for n in order]), strict=True):
        found[number] = score(number, SequenceRows(one.tokens, one.weights, one.visible))
    return [found[number] for number in range(len(ids))]
