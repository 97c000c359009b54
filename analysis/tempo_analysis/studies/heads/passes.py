"""The passes over sequences: text, repeated halves, word runs, names and needles."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise

import numpy as np
from jaxtyping import Float64
from scipy import stats

from tempo.causal.forward import Ids, PlainRows, plain_rows
from tempo.errors import TooFewPromptsError
from tempo.models.language_model import LanguageModel
from tempo.prompts.names import NamePrompts, name_prompts
from tempo.prompts.needles import NeedlePrompt, needle_prompts
from tempo.prompts.sequences import (
    Delimiters,
    TextWindows,
    delimiters,
    repeated_halves,
    text_windows,
)
from tempo.prompts.word_runs import CONDITIONS, WordRuns, word_runs
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE
from tempo_analysis.studies.heads.assignment import RoleScores, judged, role_scores
from tempo_analysis.studies.heads.batteries import (
    TextReadings,
    assigned_roles,
    read_halves,
    read_text,
    text_nulls,
    text_roles,
)
from tempo_analysis.studies.heads.detectors import retrieval
from tempo_analysis.studies.heads.detectors.circuit_maps import slot_share
from tempo_analysis.studies.heads.detectors.induction import frequent_ids
from tempo_analysis.studies.heads.detectors.positional import Peaks, peaks
from tempo_analysis.studies.heads.detectors.receivers import split_half_correlation
from tempo_analysis.studies.heads.detectors.retrieval import RetrievalTrial
from tempo_analysis.studies.heads.detectors.rows import (
    ByHead,
    HeadScore,
    SequenceRows,
    chances_of,
    scores_of,
)
from tempo_analysis.studies.heads.detectors.s_inhibition import S_INHIBITION_THRESHOLD, s_inhibition
from tempo_analysis.studies.heads.detectors.sink import SinkRate, sink_rate
from tempo_analysis.studies.heads.detectors.spectrum import Funnel, Spectrum, funnels
from tempo_analysis.studies.heads.detectors.successor import (
    SUCCESSOR_THRESHOLD,
    SuccessorRun,
    successor_attention,
    successor_run,
)
from tempo_analysis.studies.heads.plan import Battery

_EXTRAS = ("value_norm", "activations", "predictions")


@dataclass(frozen=True, slots=True)
class Column:
    """One measure of every head, beside its value for even rows."""

    value: ByHead
    chance: ByHead


@dataclass(frozen=True, slots=True)
class TextCensus:
    """What the texts say.

    Attributes:
        roles: By name.
        spectrum: Spread of the rows by measure, as in `detectors.spectrum.Spectrum`, with
            `verticality` and `value_share_of_sink`: the share of what a head writes that comes from
            slot 0 (no value for even rows).
        funnels: Entropy along the layers, with the sink and without.
        peaks: Mean offset profile without the sink, and its highest offset.
        sinks: How often heads are sinks.
        split_half: Pearson correlation of the receivers' kurtosis on even and odd texts.
        activations: Mean over texts of largest over median |activation| in the stream, by depth.
        massive: Channel that most often holds the largest activation, by depth.
        nll: Mean loss of the model on each text, in nats per token.
        windows: Where the texts were taken.
        marks: Delimiters kept and lost.
    """

    roles: dict[str, RoleScores]
    spectrum: dict[str, Column]
    funnels: dict[str, Funnel]
    peaks: Peaks
    sinks: SinkRate
    split_half: float
    activations: Float64[np.ndarray, " depth"]
    massive: tuple[int, ...]
    nll: Float64[np.ndarray, " text"]
    windows: TextWindows
    marks: Delimiters


def read_texts(model: LanguageModel, battery: Battery) -> TextCensus:
    """One pass over the texts.

    Raises:
        InputError: The corpus is too short, or no delimiter is one token.
    """
    windows = text_windows(
        battery.facts, battery.corpus, n=battery.n, length=battery.length, seed=battery.seed
    )
    marks = delimiters(battery.facts)
    readings: list[TextReadings] = []
    shares: list[ByHead] = []
    rest: list[PlainRows] = []
    for one, reading, share in _readings(model, battery, windows, marks):
        readings.append(reading)
        shares.append(share)
        rest.append(one)
    roles = text_roles(readings, seed=battery.seed)
    kurtosis = scores_of([each.readings["receiver"].score for each in readings])
    return TextCensus(
        roles={role: roles[role] for role in roles if role in battery.roles},
        spectrum=_spread(readings, shares),
        funnels=funnels([each.spectrum for each in readings], seed=battery.seed),
        peaks=peaks([each.profile for each in readings]),
        sinks=sink_rate(scores_of([each.alpha for each in readings])),
        split_half=split_half_correlation(kurtosis),
        activations=_massive_ratio(rest),
        massive=_massive_channels(rest),
        nll=np.array([_loss(one) for one in rest]),
        windows=windows,
        marks=marks,
    )


def read_repeats(model: LanguageModel, battery: Battery) -> dict[str, RoleScores]:
    """Induction and duplicates on repeated halves, beside halves that are not repeated.

    Raises:
        InputError: The vocabulary is too small.
    """
    drawn = repeated_halves(
        battery.facts, n=battery.n, n_half=battery.length // 2, seed=battery.seed
    )
    both = chain.from_iterable(zip(drawn.ids, drawn.control, strict=True))
    rows = (_rows(one) for one in plain_rows(model, list(both)))
    readings = [
        read_halves(again, apart, start=drawn.start)
        for again, apart in zip(rows, rows, strict=True)
    ]
    roles = assigned_roles(readings, seed=battery.seed)
    return {role: roles[role] for role in roles if role in battery.roles}


def _readings(
    model: LanguageModel, battery: Battery, windows: TextWindows, marks: Delimiters
) -> Iterator[tuple[PlainRows, TextReadings, ByHead]]:
    """Each text without its rows, what was read of them, and the written share of slot 0."""
    ends = np.array(marks.ids, np.int64)
    common = np.union1d(frequent_ids(list(windows.ids)), ends)
    nulls = None
    for number, one in enumerate(plain_rows(model, windows.ids, extras=_EXTRAS)):
        rows = _rows(one)
        nulls = nulls or text_nulls(rows, seed=battery.seed)
        reading = read_text(rows, number=number, nulls=nulls, delimiters=ends, common=common)
        assert one.value_norm is not None
        share = slot_share(one.weights, one.value_norm)
        nothing = np.empty((*one.weights.shape[:2], 0, 0), np.float32)
        light = PlainRows(
            one.tokens, nothing, None, activations=one.activations, predictions=one.predictions
        )
        yield light, reading, share


def _rows(one: PlainRows) -> SequenceRows:
    return SequenceRows(one.tokens, one.weights, one.visible)


def _spread(readings: list[TextReadings], shares: list[ByHead]) -> dict[str, Column]:
    found = {
        column.name: _column([getattr(each.spectrum, column.name) for each in readings])
        for column in fields(Spectrum)
    }
    found["verticality"] = _column([each.verticality for each in readings])
    share = mean_over_prompts(np.stack(shares))
    return found | {"value_share_of_sink": Column(share, np.full_like(share, np.nan))}


def _column(scores: list[HeadScore]) -> Column:
    return Column(mean_over_prompts(scores_of(scores)), mean_over_prompts(chances_of(scores)))


def _massive_ratio(rest: list[PlainRows]) -> Float64[np.ndarray, " depth"]:
    noted = [one.activations for one in rest if one.activations is not None]
    return np.stack([each.largest / each.median for each in noted]).astype(np.float64).mean(0)


def _massive_channels(rest: list[PlainRows]) -> tuple[int, ...]:
    channels = np.stack([one.activations.channel for one in rest if one.activations is not None])
    return tuple(int(np.bincount(depth).argmax()) for depth in channels.T)


def _loss(one: PlainRows) -> float:
    assert one.predictions is not None
    return float(one.predictions.nll.mean())


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
        return successor_attention(rows, run.elements)

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
        threshold=SUCCESSOR_THRESHOLD,
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
        lambda number, rows: s_inhibition(
            rows, end=every[number].end, second_subject=every[number].s2
        ),
    )
    role = role_scores(
        "s_inhibition",
        scores[: battery.n],
        scores[battery.n :],
        threshold=S_INHIBITION_THRESHOLD,
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
        threshold=retrieval.RETRIEVAL_THRESHOLD,
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
