"""Runs e01 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

from experiments.command import asked
from experiments.result import write_result
from experiments.standard import compared
from tempo_analysis.parallel.results import Results, analyze
from tempo_analysis.stats.intervals import Interval, estimate_with_interval

HERE = Path(__file__).parent
COMMAND = "tempo compare --suite standard --arms isolated,visible,unique,greedy"


def isolated_over_unique(results: Results) -> Interval:
    """Sink-free ratio of isolated over unique, paired by prompt."""
    shared, apart = (results.by_arm[arm].ratio["without"] for arm in ("isolated", "unique"))
    return estimate_with_interval(shared.log_ratio - apart.log_ratio).exponentiated()


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = compared("free", tuple(options.pop("arms")), quick=quick, **options)
    results = analyze(run)
    pair = isolated_over_unique(results)
    write_result(
        out, run, results, command=COMMAND, experiment=HERE.name, isolated_over_unique=pair
    )


if __name__ == "__main__":
    asked(main, HERE)
