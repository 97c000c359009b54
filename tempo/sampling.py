"""Selection rules that follow ways of sampling: nucleus, minimum ratio, random draws.

`TopP` and `MinP` keep whole what a sampler would draw one token from; `Sample` draws. All three
take probabilities relative to the whole of what may be selected, so that tokens ruled out before
(an ignored end of sequence) count for nothing.
"""

from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo.schedules import parse_schedule
from tempo.selection import (
    Choice,
    LogProbability,
    Select,
    Tau,
    Threshold,
    TopK,
    by_rank,
    check_count,
    margin,
    widest,
)

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
        falling = np.sort(log_probability)[::-1].astype(np.float64)
        mass = np.cumsum(np.exp(falling - falling[0]))
        reached = (mass / mass[-1]).astype(np.float32)
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
        score += self._noise(len(log_probability), step, prompt_id)[possible]
        width = min(self.width, len(possible))
        near = np.flatnonzero(score >= np.partition(score, -width)[-width])
        drawn = near[np.lexsort((near, -logs[near], -score[near]))][:width]
        token = by_rank(log_probability, possible[drawn])
        return Choice(token, log_probability[token])

    def _noise(self, n: int, step: int, prompt_id: str) -> Float64[np.ndarray, " vocab"]:
        key = sha256(f"{self.seed}:{step}:{prompt_id}".encode()).digest()
        sequence = np.random.SeedSequence(int.from_bytes(key[:16], "little"))
        return np.random.default_rng(sequence).gumbel(size=n)


def parse_select(
    text: str, *, threshold: float | int | str = 0.1, max_width: int = 8, seed: int = 0
) -> Select:
    """Read one of `SELECTS`.

    Args:
        threshold: Of the rule ``threshold``; a text is read as a schedule.
        max_width: Largest set; a rule with a width of its own may not exceed it.
        seed: Of the draws of ``sample``.

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
