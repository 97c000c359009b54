"""Runs e01 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

import tempo
from analysis.results import Results, analyze
from analysis.statistics import Interval, estimate_with_interval
from experiments.result import write_result
from tempo.suites import load_suite

HERE = Path(__file__).parent
COMMAND = "tempo compare --suite standard --arms isolated,visible,unique,greedy"


def isolated_over_unique(results: Results) -> Interval:
    """Sink-free ratio of isolated over unique, paired by prompt."""
    shared, apart = (results.by_arm[arm].ratio["without"] for arm in ("isolated", "unique"))
    return estimate_with_interval(shared.log_ratio - apart.log_ratio).exponentiated()


def main() -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    model, prompts = options.pop("model"), load_suite("standard")
    run = tempo.compare(model, prompts, out="runs/e01", force=True, **options)
    results = analyze(run)
    write_result(
        HERE, run, results, command=COMMAND, isolated_over_unique=isolated_over_unique(results)
    )


if __name__ == "__main__":
    main()
