"""The passes over text and over repeated halves: rows are read once and only scores are kept."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
from jaxtyping import Float64

from analysis.circuits.value_weighted import slot_share
from analysis.roles.assignment import RoleScores
from analysis.roles.bos_sink import SinkRate, sink_rate
from analysis.roles.duplicate_token import frequent_ids
from analysis.roles.funnel import Funnel, funnels
from analysis.roles.positional import Peaks, peaks
from analysis.roles.receivers import split_half_correlation
from analysis.roles.rows import ByHead, HeadScore, SequenceRows, chances_of, scores_of
from analysis.roles.spectrum import Spectrum
from analysis.roles.text_battery import (
    TextReadings,
    assigned_roles,
    read_halves,
    read_text,
    text_nulls,
    text_roles,
)
from tempo.causal.forward import PlainRows, plain_rows
from tempo.census.battery import Battery
from tempo.models.language_model import LanguageModel
from tempo.prompts.sequences import (
    Delimiters,
    TextWindows,
    delimiters,
    repeated_halves,
    text_windows,
)
from tempo_analysis.stats.averages import mean_over_prompts

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
        spectrum: Spread of the rows by measure, as in `analysis.roles.spectrum.Spectrum`, with
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
