"""FINDINGS.md against the results it is made from, and the results against the model."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tempo
from experiments.finding import Finding, side, status_of
from experiments.findings import ENOUGH_SETS, PAGE, entries_of, page, read_results
from tempo.cli.main import app
from tempo.prompts.suites import load_suite
from tempo.testing.tiny import tiny_model
from tempo_analysis.parallel.results import analyze
from tests.decoding import real_model

ROOT = Path(__file__).parents[2]


ENOUGH_PROMPTS = 100
FEWER = {"e16_boost": 60}  # every dose of every target on 60 takes a quarter of an hour


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read_results(), entries_of(read_results()))


def test_another_result_makes_another_page() -> None:
    results = read_results()
    name = "e01_attention_to_sets"
    changed = json.loads(json.dumps(results[name]))
    for row in changed["metrics"]:
        if row["name"] == "attention_ratio_without_sink_over_null":
            row |= {"estimate": 1.5, "low": 1.4, "high": 1.6}
    before, after = (entries_of([name])[name](result)[2] for result in (results[name], changed))
    assert isinstance(after, Finding)
    assert after.status == "refuted"
    assert "1.5 (1.4 to 1.6)" in after.evidence
    assert after.evidence != before.evidence


def test_a_status_follows_from_an_interval() -> None:
    below, around, above = ({"low": a, "high": b} for a, b in ((0.5, 0.9), (0.9, 1.1), (1.1, 2)))
    assert [side(row, of=1) for row in (below, around, above)] == [-1, 0, 1]
    assert [status_of(*pair) for pair in ((True, False), (False, True), (False, False))] == [
        "supported",
        "refuted",
        "inconclusive",
    ]


def test_a_claim_rests_on_enough_prompts_and_sets() -> None:
    for name, result in read_results().items():
        assert len(result["prompts"]) == result["n_prompts"]
        least = 60 if "probes" in result else FEWER.get(name, ENOUGH_PROMPTS)
        assert result["n_prompts"] >= least, name
        enough = "n_sets" not in result or max(result["n_sets"].values()) >= ENOUGH_SETS
        assert enough or "A description:" in page({name: result}, entries_of([name])), name


def test_every_experiment_asks_before_it_answers() -> None:
    for folder in sorted((ROOT / "experiments").glob("e*_*")):
        question = (folder / "question.md").read_text(encoding="utf-8")
        assert "Prediction" in question
        assert {"config.toml", "run.py"} <= {file.name for file in folder.iterdir()}
        assert {"entries.py", "result.json"} <= {file.name for file in folder.iterdir()}


def test_every_sentence_of_the_original_report_is_answered() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.split("## What the original report said")[1].split("## F01")[0]
    for words in (
        "0.36-0.61",
        "every step",
        "isolated 0.48, visible 0.58",
        "minimal effect",
        "RoPE sharing",
        "early-mixed",
        "by index",
        "offset",
        "bias",
        "late layers",
        "pruning correlates",
    ):
        assert words in table, words


@pytest.mark.slow
def test_decoding_again_gives_the_numbers_of_the_findings() -> None:
    result = read_results()["e01_attention_to_sets"]
    model = real_model()
    assert result["model"]["fingerprint"] == model.fingerprint
    prompts = load_suite("standard")[:4]
    run = tempo.compare(model, prompts, arms=["isolated", "greedy"], threshold=0.1, steps=10)
    again = analyze(run).by_arm["isolated"].ratio
    stored = result["detail"]["by_arm"]["isolated"]["log_ratio_by_prompt"]
    assert result["prompts"][:4] == [prompt.id for prompt in prompts]
    for sink in ("with", "without"):
        known = np.array([np.nan if value is None else value for value in stored[sink][:4]])
        np.testing.assert_allclose(again[sink].log_ratio, known, atol=1e-3)


def test_the_readme_shows_commands_and_options_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def tiny_preset(folder: Path) -> Path:
    """Stands in for the preset of the README: layers and heads enough for the heads it names."""
    model = tiny_model("llama", num_hidden_layers=17, max_position_embeddings=1024)
    assert model.tokenizer is not None
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_the_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and the Python of the README, as typed, on a tiny model under its name."""
    preset = tiny_preset(tmp_path / "preset")
    monkeypatch.setattr("tempo.models.registry.path", lambda _: preset)
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("## Use\n\n```\n")[1].split("```")[0]
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    assert len(lines) == 12
    for line in lines:
        shown = CliRunner().invoke(app, shlex.split(line)[1:])
        assert shown.exit_code == 0, (line, shown.output)
    python = readme.split("```python\n")[1].split("```")[0]
    exec(compile(python, "README.md", "exec"), {})
    assert (tmp_path / "runs/arms/report.md").exists()
