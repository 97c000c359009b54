"""Folders that an earlier version wrote, in trace format 1, open and say what they said then.

`tests/golden/format_1.zip` was written before the modules moved into rooms: a paired run of a tiny
llama with its `results.json`, and a run under two edits. It is never remade.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tempo
from tempo.policy.serialize import rule_from_dict
from tempo.policy.visibility import ISOLATED
from tempo.trace.run import Prompt
from tempo.trace.run_folder import Manifest
from tempo_analysis.parallel.results import analyze
from tests.goldens import differences

ARCHIVE = Path(__file__).parents[1] / "golden" / "format_1.zip"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(place)
    return place


def test_every_trace_of_an_old_run_is_read_whole(old: Path):
    run = tempo.open_run(old / "run_format_1")
    assert run.arms == ("isolated", "greedy", "visible@isolated", "alone@isolated")
    for trace in run:
        for step in range(trace.n_steps + 1):
            assert np.isfinite(trace.readout(step).entropy_nats)
            if trace.has_rows(step):
                rows, seen = trace.attention(step), trace.visible(step)
                assert ((rows > 0) == seen[:, None]).all()
                np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
    assert run.trace("p0000", "isolated").lattice() == "The cat sat[T|k| r][[|`| th][R| r]"
    assert len(run.alone("p0000")) == 6


def test_the_rules_of_an_old_run_are_rules_of_today(old: Path):
    run = tempo.open_run(old / "run_format_1")
    assert rule_from_dict(run.policies["isolated"]) == tempo.policies.isolated(0.05, max_width=3)
    assert rule_from_dict(run.policies["isolated"]).see == ISOLATED


def test_an_old_run_is_gone_on_with_under_the_same_hash(old: Path):
    document = json.loads((old / "run_format_1" / "run.json").read_text())
    manifest = Manifest(
        prompts=tuple(Prompt(**one) for one in document["prompts"]),
        policies=document["policies"],
        batches=tuple(tuple(map(tuple, batch)) for batch in document["batches"]),
        settings=document["settings"],
    )
    assert manifest.configuration_hash() == document["configuration_hash"]


def test_the_edits_of_an_old_run_are_read(old: Path):
    edits = tempo.open_trace(old / "edited_format_1").header.run["edits"]
    assert [edit["edit"] for edit in edits] == ["HeadOutput", "ScoreBias"]


def test_an_old_run_gives_the_numbers_that_it_gave(old: Path):
    folder = old / "run_format_1"
    then = (folder / "results.json").read_text()
    now = analyze(tempo.open_run(folder)).json()
    assert differences("results.json", then, now) == []
