"""Write `report.html`: what a run holds and what was found, in one offline file."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from markupsafe import Markup

from tempo.policy.slots import SLOT_COLUMNS
from tempo.trace.run import Run
from tempo.trace.store import disk_errors
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import Arms, arms_of
from tempo_analysis.parallel.page_charts import RoleMaps, charts, head_maps
from tempo_analysis.parallel.report import sentences
from tempo_analysis.parallel.run_numbers import RunNumbers
from tempo_analysis.parallel.tables import arm_rows, fact_rows, model_facts
from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.document import Document, plain
from tempo_analysis.report.packing import base64, pack_weights
from tempo_analysis.report.page import HERE, json_inside, page_text, save_page
from tempo_analysis.report.table import Table

MOST_BYTES = 4_500_000
"""Attention of one trace takes at most this much of the page, as long as coarser codes help."""

MOST_BYTES_BESIDE = 20_000_000
"""The same for a prompt that may be in a file of its own beside the page."""


def shown_arms(run: Run, arms: Arms) -> list[str]:
    """Arms of the page: those that decoded freely and the twins, not members alone.

    Each twin follows its reference; the null is last.
    """
    twins = {
        arm: [twin for twin, source in arms.replays.items() if source == arm] for arm in arms.free
    }
    parallel = [name for arm in arms.parallel for name in (arm, *twins[arm])]
    names = [*parallel, *(arm for arm in arms.free if arm not in parallel)]
    found = {arm for _, arm in run.traces}
    return [name for name in names if name in found]


def prompt_document(
    run: Run, prompt_id: str, arms: Sequence[str], *, most_bytes: int = MOST_BYTES
) -> Document:
    """One prompt under every arm that has a trace of it, as JSON values."""
    traces = {arm: run.traces[prompt_id, arm] for arm in arms if (prompt_id, arm) in run.traces}
    # last_step is -1 in a trace of which not even the prompt was written.
    begun = {arm: trace for arm, trace in traces.items() if trace.header.last_step >= 0}
    return {"id": prompt_id, "arms": {arm: _arm(t, most_bytes) for arm, t in begun.items()}}


def _arm(trace: Trace, most_bytes: int) -> Document:
    return {
        "level": trace.level,
        "stopped": trace.header.stopped,
        "layers": list(trace.layers),
        "heads": list(trace.heads),
        "nSteps": trace.n_steps,
        "slots": _slots(trace),
        "readoutEntropy": [trace.readout(k).entropy_nats for k in range(trace.n_steps + 1)],
        "dropped": {str(k): _dropped(trace, k) for k in range(1, trace.n_steps + 1)},
        "rows": _rows(trace, most_bytes),
    }


def _slots(trace: Trace) -> Mapping[str, Any]:
    columns = {name: plain(getattr(trace.slots, name)) for name in SLOT_COLUMNS}
    texts = [trace.token_text(slot) for slot in range(len(trace.slots))]
    return columns | {"text": texts}


def _dropped(trace: Trace, step: int) -> list[Document]:
    return [
        {"text": trace.header.tokens[one.token], "probability": one.probability, "why": one.reason}
        for one in trace.dropped(step)
    ]


def _rows(trace: Trace, most_bytes: int) -> Document | None:
    """Rows of the steps that were captured; None where only sums over groups were kept."""
    steps = [step for step in range(trace.n_steps + 1) if trace.has_rows(step)]
    if trace.level == "reduced" or not steps:
        return None
    packed = pack_weights([trace.attention(step) for step in steps], most_bytes=most_bytes)
    # Visibility depends on the layer through its window only, so it is stored once for each window
    # and not for each layer.
    windows = list(dict.fromkeys(trace.header.window))
    visible = {step: trace.visible(step) for step in steps}
    first = [trace.header.window.index(window) for window in windows]
    return {
        "steps": steps,
        "data": base64(packed.data),
        "levels": packed.levels,
        "floor": packed.floor,
        # With learned sinks the slots of a row sum to less than 1; the page must not show the rest
        # as missing.
        "sumsToOne": not any(trace.header.sinks or ()),
        "relativeError": packed.relative_error,
        "windows": windows,
        "windowOfLayer": [windows.index(window) for window in trace.header.window],
        "visible": [_bits([visible[step][layer] for step in steps]) for layer in first],
    }


def _bits(seen: Sequence[Bool[np.ndarray, "_ _"]]) -> str:
    # One bit a cell, steps on end without padding: `decode.js` reads it as one stream.
    return base64(np.packbits(np.concatenate([one.ravel() for one in seen])).tobytes())


DATA_FOLDER = "page"
MOST_EMBEDDED = 4_600_000
"""If all prompts take more than this, all but the first are written to files of their own."""

_OWN = Path(__file__).parent
SCRIPTS = (
    *(HERE / "decode.js", HERE / "draw.js", HERE / "theme.js", HERE / "save.js"),
    *(_OWN / "lattice.js", _OWN / "attention.js"),
    *(HERE / "headmap.js", HERE / "charts.js", _OWN / "page.js"),
)


def write_page(
    run: Run,
    results: RunNumbers,
    tables: Sequence[Table],
    folder: Path,
    *,
    role_maps: RoleMaps | None = None,
) -> Path:
    """Write the page and, where the run is large, one file for each further prompt beside it.

    Args:
        role_maps: Further maps of the heads, such as those of a census of the same model.

    Raises:
        OutputError: The disk refused.
    """
    folder = Path(folder)
    arms = shown_arms(run, arms_of(run))
    with disk_errors(folder):
        # Files of an earlier, larger run would stay beside the page and never be read.
        shutil.rmtree(folder / DATA_FOLDER, ignore_errors=True)
        embedded = _write_prompts(run, arms, folder / DATA_FOLDER)
    return save_page(run_page_text(run, results, tables, embedded, role_maps=role_maps), folder)


def run_page_text(
    run: Run,
    results: RunNumbers,
    tables: Sequence[Table],
    embedded: Sequence[tuple[str, str]],
    *,
    role_maps: RoleMaps | None = None,
) -> str:
    """The page; `embedded` has the id of each prompt inside it and its document as JSON."""
    roles = role_maps or RoleMaps()
    results = replace(results, refusals=(*results.refusals, *roles.refusals))
    document = _run_document(run, results, tables) | {"roleMaps": list(roles.maps)}
    return page_text(
        _OWN / "page.html.j2",
        scripts=SCRIPTS,
        styles=[HERE / "page.css"],
        title=str(model_facts(run)["name"]),
        run=json_inside(document),
        # Markup: the text is JSON in which `<`, `>` and `&` are escaped already.
        prompts=[(prompt_id, Markup(text)) for prompt_id, text in embedded],
        results=results,
        sentences=list(sentences(results)),
        tables=tables,
        facts=fact_rows(run) | _hashes(run),
        unfinished=sum(trace.header.stopped == "running" for trace in run),
        n_traces=len(run),
    )


def _run_document(run: Run, results: RunNumbers, tables: Sequence[Table]) -> dict[str, Any]:
    parts = arms_of(run)
    roles = {arm: (role, policy) for arm, role, policy in arm_rows(run, results)}
    heads = int(model_facts(run).get("queries_per_kv_head", 1))
    return {
        "model": model_facts(run)["name"],
        "queriesPerKvHead": heads,
        "dataFolder": DATA_FOLDER,
        "prompts": [{"id": p.id, "category": p.category, "text": p.text} for p in run.prompts],
        "arms": [
            {"name": arm, "role": roles.get(arm, ("", ""))[0], "of": parts.replays.get(arm)}
            for arm in shown_arms(run, parts)
        ],
        "axes": shown_axes(results),
        "maps": head_maps(results),
        "charts": charts(results),
        "tables": {table.name: csv_text(table) for table in tables},
    }


def shown_axes(results: RunNumbers) -> dict[str, Any]:
    """Layer and head numbers of the maps; empty where no arm keeps rows."""
    tables = [found.heads for found in results.by_arm.values() if found.heads]
    ratios = [ratio for found in results.by_arm.values() for ratio in found.ratio.values()]
    known = next(iter([*tables, *ratios]), None)
    return plain({"layers": known.layers, "heads": known.heads} if known else {})


def _write_prompts(run: Run, arms: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """Write the prompts that do not fit into the page to files; return those that do."""
    embedded: list[tuple[str, str]] = []
    for prompt_id, text in _documents(run, arms):
        # Characters and bytes are the same: JSON is written in ASCII.
        size = sum(len(one) for _, one in embedded) + len(text)
        # The folder was removed before, so it exists once the first prompt did not fit.
        if folder.exists():
            _write_prompt(folder, prompt_id, text)
        elif size <= MOST_EMBEDDED or not embedded:
            embedded.append((prompt_id, text))
        else:
            folder.mkdir()
            # Once one prompt lies outside, all but the first do: the page then opens quickly and
            # loads every other prompt the same way.
            for one in [*embedded[1:], (prompt_id, text)]:
                _write_prompt(folder, *one)
            del embedded[1:]
    return embedded


def _documents(run: Run, arms: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, prompt in enumerate(run.prompts):
        # Only the first prompt is sure to be inside the page.
        most = MOST_BYTES if number == 0 else MOST_BYTES_BESIDE
        yield prompt.id, json_inside(prompt_document(run, prompt.id, arms, most_bytes=most))


def _write_prompt(folder: Path, prompt_id: str, text: str) -> None:
    # A script and not JSON: a page opened from disk may not fetch files, but may load scripts.
    script = f"tempoPrompt({text});\n"
    (folder / f"{prompt_id}.js").write_text(script, encoding="utf-8")


def _hashes(run: Run) -> dict[str, str]:
    if run.folder is None:
        return {}
    manifest = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    return {"configuration hash": str(manifest.get("configuration_hash", ""))}
