"""The ten jobs as people type them, and what is said where they are typed wrongly."""

from pathlib import Path

import numpy as np
import pytest

import tempo
from tempo.errors import InputError
from tempo.policy.serialize import described_edit
from tempo.trace import run_folder
from tempo.trace.compare import changed_axes
from tempo.trace.trace import Trace
from tests.decoding import model_of

CAT = "the cat sat on the mat"
QUICK = {"steps": 3, "threshold": 0.05, "eos": "ignore"}
OWN_TEXTS = [f"the cat sat on the mat, {word} and a dog ran in; " * 8 for word in ("red", "blue")]


def test_heads_that_hold_a_role_come_as_labels_best_first() -> None:
    census = tempo.heads(
        model_of("llama"), roles=["previous_token", "bos_sink"], n=8, length=16, check_effects=False
    )
    role = census.roles["previous_token"]
    held = [f"L{layer}H{head}" for layer, head in role.best_first() if role.assigned[layer, head]]
    assert census.holders("previous_token") == held
    with pytest.raises(InputError, match="expected a role of previous_token, bos_sink"):
        census.holders("induction")


def test_heads_are_scored_on_my_own_texts_in_one_call() -> None:
    model = model_of("llama")
    options = {"roles": ["previous_token"], "n": 8, "length": 16, "check_effects": False}
    census = tempo.heads(model, texts=OWN_TEXTS, **options)
    assert census.detail["battery"]["corpus"] == "2 texts"
    other = tempo.heads(model, texts=[*OWN_TEXTS[:1], OWN_TEXTS[1].upper()], **options)
    digests = {one.detail["battery"]["corpus_sha256"] for one in (census, other)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": CAT}, "got one text; give texts="),
        ({"texts": []}, "got nothing"),
        ({"texts": [CAT, ""]}, "got 2, one of them empty"),
        ({"texts": [CAT], "corpus": "a.txt"}, "expected a corpus or texts, got both"),
        ({"texts": [CAT]}, "expected a corpus of at least"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_in_one_line(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        tempo.heads(model_of("llama"), roles=["bos_sink"], **given)
    assert "\n" not in str(refused.value)


def test_one_prompt_gives_its_trace_without_an_index() -> None:
    trace = tempo.generate(model_of("llama"), CAT, **QUICK).trace()
    assert trace.header.prompt == CAT


def test_a_run_of_several_lists_what_may_be_chosen() -> None:
    run = tempo.generate(model_of("llama"), [CAT, "a dog ran"], **QUICK)
    with pytest.raises(InputError, match="expected a prompt of p0000, p0001 and an arm of") as said:
        run.trace()
    assert "got neither" in str(said.value)
    assert "\n" not in str(said.value)
    with pytest.raises(InputError, match="got 'p0009'"):
        run.trace("p0009")


def test_on_disk_no_other_trace_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tempo.generate(model_of("llama"), [CAT, "a dog ran", "so they"], **QUICK, out=tmp_path / "run")
    opened: list[str] = []
    read = run_folder.read_trace

    def noting(folder: Path) -> Trace:
        opened.append(folder.parent.name)
        return read(folder)

    monkeypatch.setattr(run_folder, "read_trace", noting)
    run = tempo.open_run(tmp_path / "run")
    opened.clear()  # a run with types checked looks at one value of every mapping
    assert run[1].header.prompt_id == "p0001"
    assert run[-1].header.prompt_id == "p0002"
    assert run.trace("p0000").header.prompt_id == "p0000"
    assert opened == ["p0001", "p0002", "p0000"]


@pytest.mark.parametrize("level", ["weights", "qk"])
def test_a_head_is_asked_for_by_its_label(level: str) -> None:
    model = model_of("llama")
    trace = tempo.generate(model, CAT, **QUICK, capture=level).trace()
    few = tempo.generate(model, CAT, **QUICK, capture=level, layers="1", heads="0,2").trace()
    for step in range(4):
        rows = trace.attention(step)[1, 2]
        for name in ("L1H2", "1.2", (1, 2)):
            np.testing.assert_array_equal(trace.attention(step, head=name), rows)
        np.testing.assert_allclose(few.attention(step, head="L1H2"), rows, atol=1e-6)
        np.testing.assert_array_equal(few.attention(step, head="L1H2"), few.attention(step)[0, 1])
    for head in ("L0H2", "L1H1"):
        with pytest.raises(
            InputError, match=f"captured layers 1 and heads 0,2, got {head}"
        ) as said:
            few.attention(1, head=head)
        assert "\n" not in str(said.value)


def test_a_replay_is_always_a_run() -> None:
    trace = tempo.generate(model_of("llama"), CAT, **QUICK).trace()
    run = tempo.replay(trace, policy="unique", model=model_of("llama"))
    assert isinstance(run, tempo.trace.run.Run)
    twin = run.trace(arm="twin")
    assert twin.slots.token.tolist() == trace.slots.token.tolist()
    assert changed_axes(trace, twin) == {"positions"}


def test_edits_are_made_by_short_names() -> None:
    model = model_of("llama")
    edits = tempo.edits
    mean = tempo.forward(model, CAT).head_outputs.mean(1)
    donor = tempo.forward(model, "a dog ran to the house").head_outputs
    pairs = [
        (edits.zero_heads("L1H0"), edits.ReplaceHeadOutput(heads=["L1H0"])),
        (edits.zero_heads(layers=[1]), edits.ReplaceHeadOutput(layers=[1])),
        (
            edits.mean_heads("L1H0", values=mean),
            edits.ReplaceHeadOutput(heads=["L1H0"], how="mean", values=mean),
        ),
        (
            edits.resample_heads((1, 0), values=donor, queries=[1]),
            edits.ReplaceHeadOutput(heads=[(1, 0)], how="resample", values=donor, queries=[1]),
        ),
        (edits.knock_out("L1H0", slots=[1]), edits.KnockOut(heads=["L1H0"], slots=[1])),
        (
            edits.boost("L1H0", "L0H1", amount=1.0, groups=["sink"]),
            edits.ScoreBias(heads=["L1H0", "L0H1"], amount=1.0, groups=["sink"]),
        ),
        (
            edits.block_siblings(layers=[0]),
            edits.KnockOut(layers=[0], groups=["siblings"]),
        ),
    ]
    for made, spelled in pairs:
        assert described_edit(made) == described_edit(spelled)
    run = tempo.generate(model, CAT, edits=[edits.zero_heads("L1H0")], **QUICK)
    assert run.trace().header.run["edits"] == [
        {"edit": "HeadOutput", "heads": ["L1H0"], "layers": [], "how": "zero"}
    ]
    with pytest.raises(InputError, match="expected a head such as L3H5"):
        edits.zero_heads("sixteen")
