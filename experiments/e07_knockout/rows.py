"""The rows of e07: how well each predictor says which member matters."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from experiments.e07_knockout.measures import PREDICTORS, KnockedSet
from experiments.means import factor_of, mean_of
from experiments.pairs import compared_with
from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.stats.association import EVEN_AREA, NO_CORRELATION, areas, rank_correlations

LEAST_NATS = 1e-9
"""In logarithms, what lies below counts as this."""
OTHERS = tuple(name for name in PREDICTORS if name not in ("attention", "rank"))
Items = Float64[np.ndarray, "prompt item"]
Values = Float64[np.ndarray, " prompt"]


class Table:
    """Members of all sets of each prompt side by side; NaN where a prompt has fewer."""

    def __init__(self, sets: Sequence[KnockedSet], *, n_prompts: int) -> None:
        self.sets = sets
        self.n_prompts = n_prompts
        self.effect = self._items([one.effect for one in sets])
        self.most = self._items([one.effect == one.effect.max() for one in sets]) == 1
        self.group: Int64[np.ndarray, "prompt item"] = np.nan_to_num(
            self._items([np.full(len(one.effect), one.step) for one in sets])
        ).astype(np.int64)

    def predictor(self, name: str) -> Items:
        """One of `PREDICTORS` for every member."""
        return self._items([one.predictors[PREDICTORS.index(name)] for one in self.sets])

    def by_prompt(self, values: Sequence[float]) -> Values:
        """Sums over sets, by prompt; NaN without any."""
        total = np.full(self.n_prompts, np.nan)
        for one, value in zip(self.sets, values, strict=True):
            total[one.prompt] = np.nan_to_num(total[one.prompt]) + value
        return total

    def _items(self, columns: Sequence[np.ndarray]) -> Items:
        rows: list[list[float]] = [[] for _ in range(self.n_prompts)]
        for one, column in zip(self.sets, columns, strict=True):
            rows[one.prompt] += column.astype(np.float64).tolist()
        whole = np.full((self.n_prompts, max(map(len, rows), default=0)), np.nan)
        for place, row in enumerate(rows):
            whole[place, : len(row)] = row
        return whole


def metrics(table: Table) -> list[Metric]:
    """Every row of the experiment."""
    correlation = {
        name: rank_correlations(table.predictor(name), table.effect, table.group)
        for name in PREDICTORS
    }
    area = {name: areas(table.predictor(name), table.most, table.group) for name in PREDICTORS}
    made = [mean_of("effect", "a member", _mean_effect(table), unit="nats", chance=0.0)]
    for name in PREDICTORS:
        made += [
            mean_of("rank_correlation", name, correlation[name], chance=NO_CORRELATION),
            mean_of("area", name, area[name], chance=EVEN_AREA),
            _of_least(table, name),
        ]
    for name in OTHERS:
        apart = correlation[name] - correlation["attention"]
        made.append(
            compared_with(apart, "attention", name="rank_correlation_less_attention", arm=name)
        )
    return [*made, _disagreement(table)]


def _disagreement(table: Table) -> Metric:
    """Where attention and probability order two members apart: how often attention is right."""
    attention, probability = (PREDICTORS.index(name) for name in ("attention", "probability"))
    right, pairs = [], []
    for one in table.sets:
        first, second = np.triu_indices(len(one.effect), 1)
        by = one.predictors[:, first] - one.predictors[:, second]
        apart = by[attention] * by[probability] < 0
        more = (one.effect[first] > one.effect[second]) == (by[attention] > 0)
        right.append(float(more[apart].sum()))
        pairs.append(float(apart.sum()))
    number = table.by_prompt(pairs)
    share = table.by_prompt(right) / np.where(number > 0, number, np.nan)
    return mean_of("right_where_probability_disagrees", "attention", share, chance=EVEN_AREA)


def _mean_effect(table: Table) -> Values:
    total = table.by_prompt([float(one.effect.sum()) for one in table.sets])
    return total / table.by_prompt([len(one.effect) for one in table.sets])


def _of_least(table: Table, name: str) -> Metric:
    """Effect of killing the member with least of a predictor over that of any member."""
    number = PREDICTORS.index(name)
    least = [float(one.effect[one.predictors[number].argmin()]) for one in table.sets]
    anyone = table.by_prompt([float(one.effect.mean()) for one in table.sets])
    logs = np.log(np.maximum(table.by_prompt(least), LEAST_NATS) / anyone)
    return factor_of("effect_of_least", name, logs, other="any member")
