"""The seven passes of a census: what the model runs on, and the roles that are scored on it.

Each pass takes the model and the plan and gives the roles it scored, those it could not score, and
details for the document. `PASS_FUNCTIONS` lists them in the order they run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, pairwise
from typing import Any

import numpy as np
from scipy import stats

from tempo.causal.eager_rows import Activations, EagerRows, SequenceIds, eager_rows
from tempo.errors import TempoError, TooFewPromptsError
from tempo.models.head_weights import circuit_weights, processed_embedding
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
from tempo.prompts.suites import load_suite
from tempo.prompts.word_runs import CONDITIONS, families, word_runs
from tempo.run.api import compare
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import observe
from tempo_analysis.stats.averages import ByHead, mean_over_prompts
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE
from tempo_analysis.studies.heads.assignment import (
    RoleScores,
    assign_role,
    copying_role,
    role_scores,
    successor_role,
    suppression_role,
)
from tempo_analysis.studies.heads.detectors import retrieval
from tempo_analysis.studies.heads.detectors.circuit_maps import slot_share
from tempo_analysis.studies.heads.detectors.copying import copy_suppression, ov_copying
from tempo_analysis.studies.heads.detectors.induction import frequent_ids
from tempo_analysis.studies.heads.detectors.positional import peaks
from tempo_analysis.studies.heads.detectors.receivers import split_half_correlation
from tempo_analysis.studies.heads.detectors.retrieval import RetrievalTrial
from tempo_analysis.studies.heads.detectors.rows import (
    HeadScore,
    SequenceRows,
    chances_of,
    scores_of,
)
from tempo_analysis.studies.heads.detectors.s_inhibition import (
    S_INHIBITION_THRESHOLD,
    direct_copy,
    s_inhibition,
)
from tempo_analysis.studies.heads.detectors.sink import sink_rate
from tempo_analysis.studies.heads.detectors.spectrum import Spectrum, funnels
from tempo_analysis.studies.heads.detectors.successor import (
    SUCCESSOR_THRESHOLD,
    SuccessorRun,
    order_of,
    successor_attention,
    successor_ov,
    successor_run,
)
from tempo_analysis.studies.heads.effects import name_effects
from tempo_analysis.studies.heads.plan import CensusPlan
from tempo_analysis.studies.heads.scoring import (
    ScoreAndNull,
    TextScores,
    assign_roles,
    assign_text_roles,
    assign_trace_role,
    score_halves,
    score_text,
    score_trace,
    text_nulls,
)

N_NEEDLES = 24
"""Needle prompts; 8 or more must be answered, so there are three times as many."""
N_SUPPRESSION_TOKENS = 500
"""Tokens of the sample on which copy suppression is scored."""

PARALLEL_SUITE = "standard"
N_PARALLEL_PROMPTS = 32
N_PARALLEL_STEPS = 8

ARM_OF = {
    "sibling_attending": "visible",
    "set_broadcast": "isolated",
    "winner_following": "isolated",
    "set_ignoring": "isolated",
}
"""Arm on which each role is scored: only visible siblings can be attended to."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one pass found, or all of them together.

    Attributes:
        roles: Scores by role.
        refused: Reason by role, or by name of another question, without an answer.
        detail: Further numbers for the document, by name.
    """

    roles: dict[str, RoleScores] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)

    def add(self, other: "Answers") -> None:
        """Take over what another pass found."""
        self.roles.update(other.roles)
        self.refused.update(other.refused)
        self.detail.update(other.detail)


# --- text


def text_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Windows of the corpus: roles of plain text, spread of the rows, sinks, activations, loss.

    Raises:
        InputError: The corpus is too short, or no delimiter is one token.
    """
    windows = text_windows(plan.facts, plan.corpus, n=plan.n, length=plan.length, seed=plan.seed)
    marks = delimiters(plan.facts)
    texts = list(_texts(model, plan, windows, marks))
    scores = [each.scores for each in texts]
    roles = assign_text_roles(scores, seed=plan.seed)
    offsets = peaks([each.profile for each in scores])
    sinks = sink_rate(scores_of([each.alpha for each in scores]))
    kurtosis = scores_of([each.roles["receiver"].score for each in scores])
    detail = {
        "spectrum": _spectrum(texts),
        "funnel": funnels([each.spectrum for each in scores], seed=plan.seed),
        "offsets": {"profile": offsets.profile, "even": offsets.even, "peak": offsets.peak},
        "sinks": {
            "rate_percent": sinks.percent,
            "epsilon": sinks.epsilon,
            "by_head_percent": sinks.by_head,
        },
        "receivers_split_half": split_half_correlation(kurtosis),
        "activations": _activations([each.activations for each in texts]),
        "nll_nats": {"mean": float(np.mean([each.nll for each in texts])), "n": len(texts)},
        "texts": {
            "source": windows.source,
            "sha256": windows.sha256,
            "tokens_in_corpus": windows.n_corpus,
            "bos": windows.bos,
            "delimiters": list(marks.kept),
            "lost_delimiters": list(marks.vanished),
        },
    }
    return Answers({role: roles[role] for role in roles if role in plan.roles}, detail=detail)


@dataclass(frozen=True, slots=True)
class _Text:
    """What is kept of one text; its attention rows are not, so that memory stays bounded."""

    scores: TextScores
    value_share_of_sink: ByHead
    activations: Activations
    nll: float


def _texts(
    model: LanguageModel, plan: CensusPlan, windows: TextWindows, marks: Delimiters
) -> Iterator[_Text]:
    ends = np.array(marks.ids, np.int64)
    common = np.union1d(frequent_ids(list(windows.ids)), ends)
    nulls = None
    keep = ("value_norm", "activations", "predictions")
    for number, one in enumerate(eager_rows(model, windows.ids, keep=keep)):
        rows = _rows(one)
        # all windows have one length and one mask, so the permutations of the first serve all
        nulls = nulls or text_nulls(rows, seed=plan.seed)
        scores = score_text(rows, number=number, nulls=nulls, delimiters=ends, common=common)
        assert one.value_norm is not None
        assert one.activations is not None
        assert one.predictions is not None
        share = slot_share(one.weights, one.value_norm)
        yield _Text(scores, share, one.activations, float(one.predictions.nll.mean()))


def _rows(one: EagerRows) -> SequenceRows:
    return SequenceRows(one.tokens, one.weights, one.visible)


def _spectrum(texts: Sequence[_Text]) -> dict[str, dict[str, ByHead]]:
    """Mean over texts of each measure of the rows, beside its value under uniform attention."""
    found = {
        column.name: _value_and_chance(
            [getattr(each.scores.spectrum, column.name) for each in texts]
        )
        for column in fields(Spectrum)
    }
    found["verticality"] = _value_and_chance([each.scores.verticality for each in texts])
    share = mean_over_prompts(np.stack([each.value_share_of_sink for each in texts]))
    # the norms of the values decide this share, so uniform attention has no one value
    found["value_share_of_sink"] = {"value": share, "chance": np.full_like(share, np.nan)}
    return found


def _value_and_chance(scores: Sequence[HeadScore]) -> dict[str, ByHead]:
    return {
        "value": mean_over_prompts(scores_of(scores)),
        "chance": mean_over_prompts(chances_of(scores)),
    }


def _activations(texts: Sequence[Activations]) -> dict[str, Any]:
    """Massive activations of the residual stream at every depth (arXiv 2402.17762)."""
    ratio = np.stack([each.largest / each.median for each in texts]).astype(np.float64)
    channels = np.stack([each.channel for each in texts])
    return {
        "largest_over_median": ratio.mean(0),
        # the most frequent one over texts; of equally frequent channels the first
        "channel_of_largest": [int(np.bincount(depth).argmax()) for depth in channels.T],
    }


# --- repeated halves


def halves_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Induction and duplicate tokens on [R, R] of random tokens, beside [R, R'].

    Raises:
        InputError: The vocabulary is too small.
    """
    drawn = repeated_halves(plan.facts, n=plan.n, n_half=plan.length // 2, seed=plan.seed)
    both = chain.from_iterable(zip(drawn.ids, drawn.control, strict=True))
    rows = (_rows(one) for one in eager_rows(model, list(both)))
    # `rows` is one iterator given twice: zip takes [R, R] and its control in turn
    scores = [
        score_halves(repeated, independent, start=drawn.start)
        for repeated, independent in zip(rows, rows, strict=True)
    ]
    roles = assign_roles(scores, seed=plan.seed)
    return Answers({role: roles[role] for role in roles if role in plan.roles})


# --- runs of ordered words

WordPair = tuple[int, int]
"""Token ids of an element and of the element after it."""


def runs_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Attention from each element of an ordered family to the one before.

    Raises:
        InputError: The tokenizer keeps no family.
    """
    drawn = word_runs(plan.facts, n=plan.n, seed=plan.seed)
    every = [run for condition in CONDITIONS for run in drawn.runs[condition]]
    by_pair: dict[str, dict[WordPair, list[ByHead]]] = {each: {} for each in CONDITIONS}

    def scored(number: int, rows: SequenceRows) -> HeadScore:
        run = every[number]
        for before, after in pairwise(run.elements.tolist()):
            pair = (int(run.ids[before]), int(run.ids[after]))
            weight = rows.weights[:, :, after, before].astype(np.float64)
            by_pair[run.condition].setdefault(pair, []).append(weight)
        return successor_attention(rows, run.elements)

    scores = _scored(model, [run.ids for run in every], scored)
    # `every` lists all runs of one condition, then all of the next, in the order of CONDITIONS
    ordinal, words, shuffled, descending = np.split(np.array(scores, object), len(CONDITIONS))
    runs = [
        successor_run(one, words=control, shuffled=mixed, descending=back)
        for one, control, mixed, back in zip(ordinal, words, shuffled, descending, strict=True)
    ]
    detail = {
        "families": [str(family) for family in drawn.families],
        "lost_words": list(drawn.lost_words),
        "mean": {
            each.name: np.mean([getattr(run, each.name).score for run in runs], axis=0)
            for each in fields(SuccessorRun)
        },
    }
    role = _successor_role(runs, by_pair, plan.seed)
    return Answers({"successor_attention": role}, detail={"successor_runs": detail})


def _successor_role(
    runs: Sequence[SuccessorRun],
    by_pair: Mapping[str, Mapping[WordPair, Sequence[ByHead]]],
    seed: int,
) -> RoleScores:
    """Assign the role with a test over distinct pairs of words instead of over runs.

    Runs of one family repeat the same pairs, so the preference of a head for a few of them would
    count again in every run. Over pairs such preferences are the noise of the test.
    """
    signals, nulls = [run.signal() for run in runs], [run.null() for run in runs]
    ordered, mixed = (
        np.stack([np.mean(each, axis=0) for each in by_pair[name].values()])
        for name in ("ordinal", "shuffled")
    )
    # Welch: the two conditions have different pairs, in different numbers
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.asarray(stats.ttest_ind(ordered, mixed, equal_var=False, alternative="greater")[1])
    values, chances = scores_of(signals), chances_of(signals)
    return assign_role(
        "successor_attention",
        values.mean(0),
        chances.mean(0),
        per_sequence=values,
        control=scores_of(nulls) - chances_of(nulls) + chances,
        p=np.where(np.isnan(p), 1.0, p),  # pairs without any spread show no difference
        threshold=SUCCESSOR_THRESHOLD,
        unit="difference of shares, ordinal less words",
        seed=seed,
    )


# --- names


def names_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Attention from the last token to the repeated name, beside a third name at its place.

    Raises:
        InputError: Too few names are one token.
    """
    drawn = name_prompts(plan.facts, n=plan.n, seed=plan.seed)
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
        scores[: plan.n],
        scores[plan.n :],
        threshold=S_INHIBITION_THRESHOLD,
        seed=plan.seed,
    )
    return Answers({"s_inhibition": role}, detail={"names": _name_detail(model, role, drawn)})


def _name_detail(model: LanguageModel, role: RoleScores, drawn: NamePrompts) -> dict[str, Any]:
    """OV copy scores and causal effects, as far as the model family allows them."""
    detail: dict[str, Any] = {"lost_names": list(drawn.vanished)}
    tokens = sorted(drawn.names.values())
    try:
        weights = circuit_weights(model)
        without = direct_copy(weights, tokens, norm=False)
        with_norms = direct_copy(weights, tokens, norm=True)
        detail["ov_copy"] = {"plain": without.score, "with_norms": with_norms.score}
        detail["attends_and_lowers"] = role.assigned & (with_norms.score < 0)
        detail["effect"] = name_effects(model, role, drawn.prompts)
    except TempoError as error:
        detail["refused"] = str(error)
    return detail


# --- needles


def needles_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Attention to the needle while it is copied from the context.

    The right answer is fed, and what the model itself would choose at each of its tokens counts as
    written: one forward pass for each prompt instead of one for each token.

    Raises:
        InputError: The corpus is too short.
        TooFewPromptsError: The model passed fewer than 8 trials.
    """
    prompts = needle_prompts(plan.facts, plan.corpus, n=N_NEEDLES, seed=plan.seed)
    rows = eager_rows(model, [prompt.ids for prompt in prompts], keep=("predictions",))
    trials = [
        _trial(prompt, one, key=(plan.seed, number))
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
        seed=plan.seed,
    )
    return Answers(
        {"retrieval": role}, detail={"needles": {"passed": n_passed, "trials": len(trials)}}
    )


def _trial(prompt: NeedlePrompt, one: EagerRows, *, key: tuple[int, int]) -> RetrievalTrial:
    assert one.predictions is not None
    # `answered` are the queries that predict the tokens of the answer; the first one is the last
    # token of the prompt
    prompt_ids = prompt.ids[: prompt.answered[0] + 1]
    rows = one.weights[:, :, prompt.answered].transpose(2, 0, 1, 3)  # [step layer head slot]
    span = (int(prompt.needle[0]), int(prompt.needle[-1]) + 1)
    written = one.predictions.best[prompt.answered]
    return retrieval.retrieval(
        prompt_ids, np.ascontiguousarray(rows), written=written, needle=span, key=key
    )


def _scored(
    model: LanguageModel,
    ids: Sequence[SequenceIds],
    score: Callable[[int, SequenceRows], HeadScore],
) -> list[HeadScore]:
    """The score of every prompt, in the order given; prompts of one length run together."""
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    found: dict[int, HeadScore] = {}
    for number, one in zip(order, eager_rows(model, [ids[n] for n in order]), strict=True):
        found[number] = score(number, _rows(one))
    return [found[number] for number in range(len(ids))]


# --- weights


def weights_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Roles that follow from the weights alone: OV copying, successor, copy suppression.

    Raises:
        ModelError: It is not known how the weights of this family add up to a circuit.
    """
    weights = circuit_weights(model)
    answers, detail = Answers(), dict[str, Any]()
    if "ov_copying" in plan.roles:
        copying = ov_copying(weights, seed=plan.seed)
        answers.roles["ov_copying"] = copying_role(copying)
        detail["ov_copying_of_the_stream"] = copying.stream
        detail["left_out"] = list(copying.left_out)
    if "successor_ov" in plan.roles:
        try:
            orders = [order_of(family) for family in families(plan.facts)]
            tokens = sorted({token for order in orders for token in order.tokens})
            found = successor_ov(weights, orders, processed_embedding(model, tokens))
            answers.roles["successor_ov"] = successor_role(found)
            by_family = zip(found.families, found.by_family, strict=True)
            detail["successor_ov_by_family"] = dict(by_family)
        except TempoError as error:
            answers.refused["successor_ov"] = str(error)
    if "copy_suppression" in plan.roles:
        sample = processed_embedding(model, _corpus_tokens(plan))
        suppression = copy_suppression(weights, sample, seed=plan.seed)
        answers.roles["copy_suppression"] = suppression_role(suppression, seed=plan.seed)
        detail["suppression_ov"] = suppression.ov
        detail["suppression_qk"] = suppression.qk
    answers.detail["weights"] = detail
    return answers


def _corpus_tokens(plan: CensusPlan) -> list[int]:
    """A random sample of the token ids that occur in the corpus, without special tokens."""
    occurring = np.unique(np.array(plan.facts.encode(plan.corpus.text), np.int64))
    # the name is part of the seed: this draw is independent of all others under one seed
    rng = np.random.default_rng([plan.seed, *b"suppression"])
    known = np.intersect1d(occurring, plan.facts.ordinary)
    n = min(N_SUPPRESSION_TOKENS, len(known))
    return sorted(rng.choice(known, n, replace=False).tolist())


# --- parallel sets


def parallel_pass(model: LanguageModel, plan: CensusPlan) -> Answers:
    """Attention to parallel sets, on prompts of a bundled suite decoded in three arms."""
    prompts = list(load_suite(PARALLEL_SUITE))
    every = max(len(prompts) // N_PARALLEL_PROMPTS, 1)  # spread over the suite, not its beginning
    run = compare(
        model,
        prompts[::every][:N_PARALLEL_PROMPTS],
        arms=("isolated", "visible", "greedy"),
        steps=N_PARALLEL_STEPS,
        capture="weights",
        seed=plan.seed,
    )
    roles = [role for role in ARM_OF if role in plan.roles]
    scores = {
        arm: [_scored_trace(run, number, arm, plan.seed) for number in range(len(run.prompts))]
        for arm in dict.fromkeys(ARM_OF[role] for role in roles)
    }
    answers = Answers()
    for role in roles:
        try:
            answers.roles[role] = assign_trace_role(role, scores[ARM_OF[role]], seed=plan.seed)
        except TempoError as error:
            answers.refused[role] = str(error)
    return answers


def _scored_trace(run: Run, number: int, arm: str, seed: int) -> dict[str, ScoreAndNull]:
    prompt = run.prompts[number].id
    trace, greedy = run.trace(prompt, arm), run.trace(prompt, "greedy")
    labels = inherited_labels(trace.slots, greedy.slots)
    return score_trace(observe(trace), key=(seed, number), greedy=(observe(greedy), labels))


PASS_FUNCTIONS: Mapping[str, Callable[[LanguageModel, CensusPlan], Answers]] = {
    "text": text_pass,
    "halves": halves_pass,
    "runs": runs_pass,
    "names": names_pass,
    "needles": needles_pass,
    "weights": weights_pass,
    "parallel": parallel_pass,
}
"""By the names of `plan.PASSES`, in the order they run."""
