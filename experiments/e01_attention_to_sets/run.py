"""Runs e01 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

import tempo
from analysis.results import analyze
from experiments.result import write_result
from tempo.suites import load_suite

HERE = Path(__file__).parent


COMMAND = "tempo compare --suite standard --arms isolated,visible,unique,greedy"


def main() -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = tempo.compare(options.pop("model"), load_suite("standard"), out="runs/e01", **options)
    write_result(
        HERE,
        run,
        analyze(run),
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
