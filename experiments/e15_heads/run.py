"""Runs e15 and writes result.json; `question.md` says what is asked and what was predicted."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import tempo
from experiments.command import asked
from experiments.result import made_by, write_document
from experiments.standard import MODEL
from tempo.run.recorder import versions
from tempo_analysis.report.document import plain
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.heads.depth import depth_difference
from tempo_analysis.studies.heads.findings import Census
from tempo_analysis.studies.heads.plan import PASSES

HERE = Path(__file__).parent
BEST = 5
QUICK_ROLES = tuple(role for name in PASSES if name != "parallel" for role in PASSES[name])
"""Decoding in parallel and silencing heads take most of the time."""


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    kind = "quick_" if quick else ""
    n, length = options[f"{kind}sequences"], options[f"{kind}length"]
    roles = QUICK_ROLES if quick else None
    found = tempo.heads(
        MODEL, roles=roles, n=n, length=length, seed=options["seed"], check_effects=not quick
    )
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=found.model,
        versions=versions(),
        trace_hash=hashlib.sha256(found.json().encode()).hexdigest(),
    )
    document = {"metrics": _metrics(found), "detail": _detail(found)}
    texts = [f"text {number}" for number in range(n)]
    write_document(out, document, made=made, prompts=texts)


def _metrics(found: Census) -> list[dict[str, Any]]:
    depth = found.depth
    after = depth_difference(depth["induction"], depth["previous_token"], same_sequences=False)
    funnel = found.detail["funnel"]
    return [
        *(_row("depth", role, one.centroid) for role, one in found.depth.items()),
        _row("depth_after_previous_token", "induction", after, chance=0.0),
        *(_row("entropy_change", f"{sink} sink", one.change) for sink, one in funnel.items()),
        *(_row("entropy_first_third", f"{sink} sink", one.first) for sink, one in funnel.items()),
        *(_row("entropy_last_third", f"{sink} sink", one.last) for sink, one in funnel.items()),
    ]


def _row(name: str, arm: str, found: Interval, chance: float | None = None) -> dict[str, Any]:
    limits = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
    return plain({"name": name, "arm": arm, "chance": chance} | limits)


def _detail(found: Census) -> dict[str, Any]:
    document = found.document()
    roles = document["roles"] | document["more_roles"]
    return {
        "roles": {
            role: {
                "n_assigned": document["rules"][role]["n_assigned"],
                "best": list(rows[:BEST]),
                "held_by": [row["head"] for row in rows if row["assigned"]],
            }
            for role, rows in roles.items()
        },
        "n_heads": len(next(iter(roles.values()))),
        "n_layers": found.model["n_layers"],
        "refused": document["refused"],
        "sinks": {key: document["detail"]["sinks"][key] for key in ("rate_percent", "epsilon")},
        "effects": document["detail"].get("effects"),
        "texts": document["detail"]["texts"],
        "needles": document["detail"].get("needles"),
        "names": {
            key: document["detail"]["names"].get(key)
            for key in ("name_movers", "effect", "lost_names")
        },
    }


if __name__ == "__main__":
    asked(main, HERE)
