"""The command line of an experiment: all of it into its own folder, or a quick try elsewhere."""

import argparse
from collections.abc import Callable
from pathlib import Path


def asked(main: Callable[[bool, Path], None], here: Path) -> None:
    """Ask with the options of the command line.

    Args:
        main: Called with whether to be quick and the folder for `result.json`.
        here: The folder of the experiment, where the result goes unless `--out` says otherwise.
    """
    parser = argparse.ArgumentParser(description=f"Asks {here.name} and writes result.json.")
    parser.add_argument("--quick", action="store_true", help="a few prompts only; needs --out")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    given = parser.parse_args()
    if given.quick and (given.out is None or given.out.resolve() == here.resolve()):
        parser.error("expected --out FOLDER beside --quick, so that result.json stays; give one")
    main(given.quick, given.out or here)
