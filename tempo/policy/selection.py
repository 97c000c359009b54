"""Selection rules: from a next-token distribution to a parallel set.

Selection is on float32 probabilities. Sets are ordered by probability, ties by token id; only
`Forced` keeps the order it was given.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tempo.errors import InputError
from tempo.policy.schedules import Schedule, check_threshold, parse_schedule
from tempo.vocabulary import TOP_READOUT


@dataclass(frozen=True, slots=True)
class Dropped:
    """A token that passed the selection and was left out, with the reason."""

    token: int
    probability: float
    reason: str


DROP_REASONS = ("max_width", "eos")

LogProbability = Float32[np.ndarray, " vocab"]
Tau = float | int | Schedule
"""One threshold for all steps, or one for each."""
_SLACK = 1e-3
"""In nats. Tokens above tau, or below it by no more than this, are compared exactly, as float32
probabilities; all others are excluded by their logs, which saves most of the exponentials."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The set that a step feeds.

    Attributes:
        token: Member ids by rank.
        log_probability: Their log-probabilities under the distribution that chose them.
        dropped: Tokens that passed and were left out.
        tau_margin: Distance of the nearest probability to the threshold; NaN without one.
        ends: The set is an end of sequence.
        parent: For each member, the index of its parent among the nodes; None if it has all.
        path_log_probability: Of the complete path; None where it equals `log_probability`.
    """

    token: Int64[np.ndarray, " member"]
    log_probability: Float32[np.ndarray, " member"]
    dropped: tuple[Dropped, ...] = ()
    tau_margin: float = float("nan")
    ends: bool = False
    parent: Int64[np.ndarray, " member"] | None = None
    path_log_probability: Float32[np.ndarray, " member"] | None = None


class Select(ABC):
    """Selects tokens of a distribution."""

    @abstractmethod
    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The set for a step; rules that draw key the draw by seed, prompt and step."""

    @property
    def forced(self) -> bool:
        """Whether the tokens were given; then an end of sequence has no effect."""
        return False

    def exhausted(self, step: int) -> bool:
        """Whether there is nothing to select at this step."""
        return False


@dataclass(frozen=True, slots=True)
class Threshold(Select):
    """Every token with probability >= tau, at most `max_width`; the top token if there is none."""

    tau: Tau
    max_width: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.tau, Schedule):
            check_threshold(self.tau)
        check_count("max_width", self.max_width)

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """Tokens at or above the tau of the step."""
        tau = self.tau.at(step) if isinstance(self.tau, Schedule) else float(self.tau)
        near = np.flatnonzero(log_probability >= np.log(tau) - _SLACK)
        # In float32 probabilities, as documented: logs would decide near ties in another way.
        passed = near[np.exp(log_probability[near]) >= np.float32(tau)]
        if not len(passed):
            # Never an empty set: decoding goes on with the top token, the smallest id among equals.
            passed = np.flatnonzero(log_probability == log_probability.max())[:1]
        chosen = widest(log_probability, passed, self.max_width)
        return replace(chosen, tau_margin=margin(log_probability, tau))


@dataclass(frozen=True, slots=True)
class TopK(Select):
    """The k most probable tokens."""

    k: int

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The best k."""
        k = min(self.k, len(log_probability))
        # Everything tied with the k-th passes here; `by_rank` then prefers the smaller ids.
        lowest = np.partition(log_probability, -k)[-k]
        token = by_rank(log_probability, np.flatnonzero(log_probability >= lowest))[:k]
        return Choice(token, log_probability[token])


@dataclass(frozen=True, slots=True)
class Greedy(Select):
    """The most probable token."""

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The top token; the smallest id among equals."""
        # argmax returns the first maximum, hence the smallest id: the tie rule of all selections.
        token = np.asarray([log_probability.argmax()], np.int64)
        return Choice(token, log_probability[token])


@dataclass(frozen=True, slots=True)
class Forced(Select):
    """Given tokens: `sets[k - 1]` is fed at step k, in the order given, duplicates allowed.

    Attributes:
        sets: Token ids of each set.
        log_probabilities: What the members count as having been chosen with, so that a replay
            keeps the weights of the run it replays; what the model gives them now if left out.
        parents: In a tree, which member of the set before each one descends from, by rank.
    """

    sets: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...] | None = None
    parents: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.sets or not all(self.sets):
            raise InputError(
                "expected at least one forced set and no empty one; give token ids for every step"
            )
        given = self.log_probabilities
        if given is not None and [len(one) for one in given] != [len(one) for one in self.sets]:
            raise InputError("expected one log-probability for each forced token; give all or none")

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The given set."""
        # Step 0 reads the prompt; the first set is fed at step 1.
        token = np.asarray(self.sets[step - 1], np.int64)
        if token.min() < 0 or token.max() >= len(log_probability):
            raise InputError(
                f"expected forced token ids from 0 to {len(log_probability) - 1}, "
                f"got {token.tolist()}"
            )
        if self.log_probabilities is None:
            return Choice(token, log_probability[token])
        return Choice(token, np.asarray(self.log_probabilities[step - 1], np.float32))

    @property
    def forced(self) -> bool:
        """The tokens were given."""
        return True

    def exhausted(self, step: int) -> bool:
        """Past the last given set."""
        return step > len(self.sets)


def by_rank(
    log_probability: LogProbability, token: Int64[np.ndarray, " member"]
) -> Int64[np.ndarray, " member"]:
    """Tokens by probability, ties by id."""
    # lexsort sorts by its last key first.
    return token[np.lexsort((token, -log_probability[token]))]


def widest(
    log_probability: LogProbability, passed: Int64[np.ndarray, " passed"], max_width: int
) -> Choice:
    """The best of the tokens that passed, at most `max_width`; the next best are noted as dropped.

    No more are noted than a trace keeps of a readout: a nucleus may hold most of a vocabulary.
    """
    token = by_rank(log_probability, passed)
    kept, cut = token[:max_width], token[max_width:][:TOP_READOUT]
    dropped = tuple(Dropped(int(t), float(np.exp(log_probability[t])), "max_width") for t in cut)
    return Choice(kept, log_probability[kept], dropped)


def margin(log_probability: LogProbability, tau: float) -> float:
    """Distance of the nearest probability to a threshold."""
    passes = log_probability >= np.log(tau)
    nearest = [
        log_probability[passes].min(initial=np.inf),
        log_probability[~passes].max(initial=-np.inf),
    ]
    return float(np.abs(np.exp(np.asarray(nearest, np.float64)) - tau).min())


def check_count(name: str, value: int) -> None:
    """Refuse a number of tokens below 1.

    Raises:
        InputError: It is.
    """
    if value < 1:
        raise InputError(f"expected {name} of at least 1, got {value}; give a whole number above 0")


SELECTS = ("threshold", "top-k:K", "top-p:P", "min-p:R", "sample:W[:TEMPERATURE]")
"""What `parse_select` reads."""


@dataclass(frozen=True, slots=True)
class TopP(Select):
    """The smallest set of most probable tokens whose mass reaches p, at most `max_width`.

    The token that crosses p is kept. Mass is summed in float64 and compared in float32. Holtzman
    et al. 2020, "The curious case of neural text degeneration", section 3.1.
    """

    p: float | int
    max_width: int = 8

    def __post_init__(self) -> None:
        _check_share("top-p", self.p)
        check_count("max_width", self.max_width)

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The nucleus."""
        # float64: a float32 sum over 100,000 tokens loses the small ones, and p can be missed.
        falling = np.sort(log_probability)[::-1].astype(np.float64)
        # Relative to the top token and divided by the total: the logs need not be normalised.
        mass = np.cumsum(np.exp(falling - falling[0]))
        reached = (mass / mass[-1]).astype(np.float32)
        # "left": the first token whose cumulated mass is at least p. It is kept.
        n = int(np.searchsorted(reached, np.float32(self.p))) + 1
        passed = np.flatnonzero(log_probability >= falling[n - 1])
        return widest(log_probability, by_rank(log_probability, passed)[:n], self.max_width)


@dataclass(frozen=True, slots=True)
class MinP(Select):
    """Every token at least `ratio` times as probable as the top token, at most `max_width`.

    Nguyen et al. 2024, "Turning up the heat: min-p sampling", section 3.
    """

    ratio: float | int
    max_width: int = 8

    def __post_init__(self) -> None:
        _check_share("min-p", self.ratio)
        check_count("max_width", self.max_width)

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """Tokens near the top; `tau_margin` is the distance to `ratio` times its probability."""
        top = log_probability.max()
        # The ratio of probabilities as a difference of logs, which cannot underflow.
        passed = np.flatnonzero(np.exp(log_probability - top) >= np.float32(self.ratio))
        tau = max(self.ratio * float(np.exp(np.float64(top))), np.finfo(np.float64).tiny)
        chosen = widest(log_probability, passed, self.max_width)
        return replace(chosen, tau_margin=margin(log_probability, tau))


@dataclass(frozen=True, slots=True)
class Sample(Select):
    """Distinct tokens drawn without replacement from softmax(log p / temperature).

    The tokens of the `width` highest log p / temperature + Gumbel noise (Kool et al. 2019,
    "Stochastic beams and where to find them", section 2.3): the first draw falls on a token with
    its tempered probability, and each later one likewise among those that are left. The noise is a
    function of the seed, the prompt's id and the step: what decodes beside the prompt, or under
    which arm, does not change it. Members are ordered by probability and carry their
    log-probability under the readout, untempered. Tokens of probability 0 are never drawn, so a
    set may be narrower.
    """

    width: int = 1
    temperature: float | int = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("width", self.width)
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise InputError(
                f"expected a temperature above 0, got {self.temperature:g}; use top-k:K for the "
                "most probable tokens"
            )
        if self.seed < 0:
            raise InputError(f"expected a seed of at least 0, got {self.seed}; for example 0")

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The draw of this prompt at this step."""
        possible = np.flatnonzero(np.isfinite(log_probability))
        logs = log_probability[possible].astype(np.float64)
        with np.errstate(over="ignore"):  # a low temperature makes the others impossible
            score = (logs - logs.max()) / self.temperature
        # Noise for the whole vocabulary: an impossible token must not shift the noise of later ids.
        score += self._noise(len(log_probability), step, prompt_id)[possible]
        width = min(self.width, len(possible))
        # All that tie with the last score; the sort below then breaks ties by probability and id.
        near = np.flatnonzero(score >= np.partition(score, -width)[-width])
        drawn = near[np.lexsort((near, -logs[near], -score[near]))][:width]
        token = by_rank(log_probability, possible[drawn])
        return Choice(token, log_probability[token])

    def _noise(self, n: int, step: int, prompt_id: str) -> Float64[np.ndarray, " vocab"]:
        # A hash, so that neighbouring steps and prompts have unrelated streams.
        key = sha256(f"{self.seed}:{step}:{prompt_id}".encode()).digest()
        sequence = np.random.SeedSequence(int.from_bytes(key[:16], "little"))
        return np.random.default_rng(sequence).gumbel(size=n)


def parse_select(
    text: str, *, threshold: float | int | str = 0.1, max_width: int = 8, seed: int = 0
) -> Select:
    """Read one of `SELECTS`.

    Args:
        threshold: Threshold of the rule ``threshold``; text is read as a schedule.
        max_width: Largest set; a rule with its own width may not exceed it.
        seed: Seed of the draws of ``sample``.

    Raises:
        InputError: None of these, or a value out of its range.
    """
    try:
        match text.split(":"):
            case ["threshold"]:
                return Threshold(_tau(threshold), max_width)
            case ["top-k", k]:
                return TopK(_within(max_width, int(k), text))
            case ["top-p", p]:
                return TopP(float(p), max_width)
            case ["min-p", ratio]:
                return MinP(float(ratio), max_width)
            case ["sample", width]:
                return Sample(_within(max_width, int(width), text), seed=seed)
            case ["sample", width, temperature]:
                return Sample(_within(max_width, int(width), text), float(temperature), seed)
            case _:
                raise ValueError(text)
    except ValueError:
        raise InputError(f"expected a selection of {', '.join(SELECTS)}, got {text!r}") from None


def _tau(threshold: float | int | str) -> Tau:
    return parse_schedule(threshold) if isinstance(threshold, str) else threshold


def _within(max_width: int, width: int, text: str) -> int:
    if width > max_width:
        raise InputError(
            f"expected at most {max_width} tokens, the largest set, got {text!r}; "
            f"raise --max-width to {width}"
        )
    return width


def _check_share(name: str, value: float | int) -> None:
    if not 0 < value <= 1:
        raise InputError(
            f"expected {name} of a share above 0 and at most 1, got {value:g}; for example "
            f"{name}:0.5"
        )
