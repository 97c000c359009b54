"""The ten jobs as people type them, and what is said where they are typed wrongly."""

import re
import sys
from importlib.metadata import version
from pathlib import Path
from runpy import run_path
from types import ModuleType

import numpy as np
import pytest
import torch

import tempo
import tempo_analysis
from tempo.errors import InputError, OutputError
from tempo.policy.biases import Boost, LogWeight, MassNeutral
from tempo.policy.positions import Given, Offset, Swapped, Unique
from tempo.policy.pruning import AttentionBelow, Kill, Never
from tempo.policy.readout import Posterior, Product
from tempo.policy.schedules import Bezier, Constant, Linear, ReLU
from tempo.policy.selection import Greedy, MinP, Sample, Threshold, TopK, TopP
from tempo.policy.serialize import edit_to_dict
from tempo.policy.visibility import VISIBLE
from tempo.run.options import make_options
from tempo.trace import run_folder
from tempo.trace.compare import changed_axes
from tempo.trace.trace import Trace
from tempo_analysis.parallel.results import Results
from tests.command_line import model_folder
from tests.decoding import model_of

ROOT = Path(__file__).parent.parent

CAT = "the cat sat on the mat"
WIDE = {"max_width": 4}
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
    few = tempo.generate(model, CAT, **QUICK, capture=level, layers=[1], heads=[0, 2]).trace()
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
        assert edit_to_dict(made) == edit_to_dict(spelled)
    run = tempo.generate(model, CAT, edits=[edits.zero_heads("L1H0")], **QUICK)
    assert run.trace().header.run["edits"] == [
        {"edit": "HeadOutput", "heads": ["L1H0"], "layers": [], "how": "zero"}
    ]
    with pytest.raises(InputError, match="expected a head such as L3H5"):
        edits.zero_heads("sixteen")


OBJECTS = [
    ({"layers": [0, 1]}, {"layers": "0,1"}),
    ({"layers": range(2)}, {"layers": "0,1"}),
    ({"layers": 1, "heads": np.array([0, 1, 2])}, {"layers": "1", "heads": "0-2"}),
    ({"heads": (2, 0, 1)}, {"heads": "0,1,2"}),
    ({"positions": 0.01}, {"positions": "offset:0.01"}),
    ({"positions": Offset(0.5)}, {"positions": "offset:0.50"}),
    ({"positions": Swapped(Unique())}, {"positions": "swapped-unique"}),
    ({"threshold": Constant(0.07)}, {"threshold": 0.07}),
    ({"threshold": Linear(0.3, 0.05, 10)}, {"threshold": "linear:0.3:0.05:10"}),
    ({"threshold": Bezier(0.3, (0.05,), 0.1, 9)}, {"threshold": "bezier:0.3:0.05:0.1:9"}),
    ({"threshold": ReLU(0.3, 5, -0.05, 0.05)}, {"threshold": "relu:0.3:5:-0.05:0.05"}),
    ({"select": TopK(3)}, {"select": "top-k:3"}),
    ({"select": TopK(12)}, {"select": "top-k:12", "max_width": 12}),
    ({"select": TopP(0.9, 4)}, {"select": "top-p:0.90", "max_width": 4}),
    ({"select": MinP(0.2)}, {"select": "min-p:0.2"}),
    ({"select": Sample(2, 0.7, 5)}, {"select": "sample:2:0.7", "seed": 5}),
    ({"select": Threshold(0.07, 4)}, {"threshold": 0.07, "max_width": 4}),
    ({"readout": Product()}, {"readout": "product"}),
    ({"readout": Posterior(4), "max_width": 4}, {"readout": "posterior", "max_width": 4}),
    ({"bias": Boost(0.5)}, {"bias": "boost:0.5"}),
    ({"bias": [Boost(1), MassNeutral()]}, {"bias": "boost:1.0+mass-neutral"}),
    ({"bias": LogWeight()}, {"bias": "log-weight"}),
    ({"prune": AttentionBelow(0.01)}, {"prune": "attention:0.01"}),
    ({"prune": AttentionBelow(0.2, relative=True)}, {"prune": "attention-share:0.2"}),
    ({"prune": Never()}, {"prune": "never"}),
    ({"budget": 500_000_000}, {"budget": "500 MB"}),
    ({"budget": 1.5e9}, {"budget": "1.5GB"}),
    ({"dtype": torch.float32, "device": torch.device("cpu")}, {"dtype": "float32"}),
]


@pytest.mark.parametrize(("objects", "words"), OBJECTS, ids=[str(words) for _, words in OBJECTS])
def test_rules_lists_and_numbers_are_recorded_as_the_words_of_the_command_line(
    objects: dict, words: dict
) -> None:
    policy = {"policy": "tree"} if words.get("readout") == "posterior" else {}
    asked, written = (make_options({**policy, **one}) for one in (objects, words))
    assert asked.model_dump(mode="json") == written.model_dump(mode="json")
    assert asked.policy_of(asked.policy) == written.policy_of(written.policy)


def test_a_run_asked_for_with_objects_is_the_run_asked_for_with_words(tmp_path: Path) -> None:
    model, out = model_of("llama"), tmp_path / "run"
    objects = {"layers": [0, 1], "positions": 0.25, "bias": [Boost(0.5)], "dtype": torch.float32}
    words = {"layers": "0,1", "positions": "offset:0.25", "bias": "boost:0.5"}
    first = tempo.generate(model, CAT, **QUICK, **objects, out=out)
    assert not first.already_complete
    assert tempo.generate(model, CAT, **QUICK, **words, out=out).already_complete


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [0, -1]}, r"layers: expected numbers such as \[0, 3\]"),
        ({"heads": ["L3H5"]}, "heads: expected numbers such as"),
        ({"layers": []}, "layers: expected numbers such as"),
        ({"layers": [0, 9]}, "expected layers from 0 to 1, got '0,9'"),
        ({"positions": True}, "positions: expected a rule such as 0.01, Offset"),
        ({"positions": Boost(1)}, "positions: expected a rule such as 0.01, Offset"),
        ({"positions": Given(((1.0,),))}, "got Given; put it in a tempo.Policy"),
        ({"bias": Boost(1, own_set=True)}, "got Boost; put it in a tempo.Policy"),
        ({"bias": []}, "bias: expected a rule such as Boost"),
        ({"prune": Kill(((1, 9),))}, "got Kill; put it in a tempo.Policy"),
        ({"select": Greedy()}, "got Greedy; put it in a tempo.Policy"),
        ({"select": TopP(0.9), "max_width": 4}, "expected one max_width, got 4 beside"),
        ({"readout": Posterior(4)}, "with a frontier of max_width, 8, got 4"),
        ({"budget": 0}, "expected a size of at least 1 byte"),
    ],
)
def test_what_has_no_words_is_refused_in_one_line(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as said:
        tempo.generate(model_of("llama"), CAT, steps=2, **given)
    assert "\n" not in str(said.value)


@pytest.fixture(scope="module")
def results() -> Results:
    texts = [f"{CAT} {word}" for word in ("a", "b", "c", "d", "e", "f", "g", "h")]
    arms = ("isolated", "visible", "greedy")
    return tempo.analyze(tempo.compare(model_of("llama"), texts, arms=arms, **QUICK))


def test_a_number_is_asked_for_by_its_name_and_arm(results: Results) -> None:
    (row,) = results["attention_ratio_without_sink", "isolated"]
    assert row in results.metrics
    assert row is results["attention_ratio_without_sink", "isolated"].only
    assert row.low <= row.estimate <= row.high
    assert (row.n, row.chance) == (8, 1.0)
    assert row.null > 0
    assert row.verdict


def test_the_name_of_a_family_gives_every_variant(results: Results) -> None:
    found = results["attention_ratio", "isolated"]
    assert [row.name for row in found] == [
        "attention_ratio_without_sink",
        "attention_ratio_without_sink_over_null",
        "attention_ratio_with_sink",
        "attention_ratio_with_sink_over_null",
    ]
    assert {row.arm for row in results["sink_mass"]} == {"isolated", "visible", "greedy"}
    # a name of its own is no family, even where others begin with it
    assert [row.name for row in results["normalised_entropy", "greedy"]] == ["normalised_entropy"]
    with pytest.raises(InputError, match="expected one row, got 4: attention_ratio_without_sink"):
        _ = found.only


def test_a_name_that_nothing_has_is_refused_with_the_nearest(results: Results) -> None:
    with pytest.raises(InputError, match="such as attention_ratio_with_sink") as said:
        results["atention_ratio_with", "isolated"]
    assert "\n" not in str(said.value)
    with pytest.raises(InputError, match="expected an arm such as isolated, "):
        results["sink_mass", "isolate"]


def test_rows_become_a_frame_of_pandas_where_it_is_installed(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pytest.importorskip("pandas") and results["attention_ratio", "isolated"].to_pandas()
    names = ["name", "arm", "estimate", "low", "high", "n", "chance", "null", "verdict"]
    assert list(frame.columns) == names
    assert len(frame) == 4
    assert frame.estimate[0] == results.metrics[0].estimate
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"install tempo-decoding\[pandas\]"):
        results["attention_ratio"].to_pandas()


def test_what_was_found_saves_itself_and_lets_others_be(tmp_path: Path, results: Results) -> None:
    folder = tmp_path / "found"
    page, *others = results.save(folder)
    assert page == folder / "report.html"
    assert (folder / "results.json").read_text() == results.json()
    assert all(path.exists() for path in others)
    with pytest.raises(OutputError, match="force"):
        results.save(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="expected"):
        results.save(tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_every_promised_name_is_there_and_described() -> None:
    assert sorted(tempo.__all__) == tempo.__all__ == dir(tempo)
    for name in set(tempo.__all__) - {"__version__"}:
        found = getattr(tempo, name)
        assert found.__doc__, name
    assert tempo.__version__ == version("tempo-decoding")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tempo.nothing


@pytest.mark.parametrize(
    "name", [name for name in tempo.__all__ if name not in ("Policy", "__version__")]
)
def test_every_promised_function_has_arguments_returns_errors_and_an_example(name: str) -> None:
    found = getattr(tempo, name)
    if isinstance(found, ModuleType):
        return
    text = found.__doc__ or ""
    assert [part for part in ("Args:", "Returns:", "Raises:", "Example:") if part not in text] == []


def test_the_packages_say_that_they_are_typed() -> None:
    for package in (tempo, tempo_analysis):
        assert (Path(package.__path__[0]) / "py.typed").is_file()


def test_a_twin_is_told_from_its_reference() -> None:
    trace = tempo.generate(model_of("llama"), CAT, **QUICK).trace()
    change = tempo.twins.parse_change("offset:0.25")
    assert change == tempo.twins.Change(place=Offset(0.25))
    twin = tempo.replay(trace, policy=change, model=model_of("llama")).trace(arm="twin")
    assert tempo.twins.changed_axes(trace, twin) == {"positions"}
    assert tempo.twins.check_axes(trace, twin, ["positions"]) <= set(tempo.twins.AXES)


def test_a_model_is_examined_in_one_call() -> None:
    found = tempo.diagnose(model_of("llama"))
    assert found.healthy


def test_the_recipes_run_in_order_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == page.count("\n## ") + 1, "a block for each recipe, and one before them"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempo, "load_model", lambda _: model_of("llama"), raising=False)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "recipes.md", "exec"), names)
    assert {"trace", "rows", "frame", "twin", "census"} <= set(names)


@pytest.mark.parametrize(
    ("program", "arguments", "shown"),
    [
        ("read_a_head", [], "looks at"),
        ("change_one_thing", [], "siblings seen: relation changed"),
        ("compare_policies", ["8"], "sink_mass, greedy"),
        ("find_and_cut_heads", ["ov_copying"], "ov_copying: "),
    ],
)
def test_the_examples_run(
    program: str, arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} >= {program}
    run_path(str(ROOT / "examples" / f"{program}.py"))["main"](model_folder(), *arguments)
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (tempo.policies.visible(0.05), {"policy": "visible", "threshold": 0.05}),
        (tempo.policies.unique(0.05, max_width=4), {"policy": "unique", "threshold": 0.05} | WIDE),
        (tempo.Policy(TopK(3)), {"policy": "isolated", "select": "top-k:3"}),
        (tempo.policies.tree(0.05, max_width=4), {"policy": "custom"}),
        (tempo.policies.greedy(), {"policy": "greedy"}),
        (tempo.Policy(TopK(3), Offset(0.5)), {"policy": "custom"}),
    ],
)
def test_a_policy_that_is_a_preset_is_the_same_run_as_its_name(
    policy: tempo.Policy, words: dict
) -> None:
    model = model_of("llama")
    run = tempo.generate(model, CAT, policy=policy, steps=2, eos="ignore")
    assert run.settings["policy"] == words["policy"]
    if words["policy"] != "custom":
        written = tempo.generate(model, CAT, steps=2, eos="ignore", **words)
        assert run.settings == written.settings
        assert (run.arms, run.policies) == (written.arms, written.policies)


def test_arms_are_names_policies_or_rules() -> None:
    model, options = model_of("llama"), {"steps": 2, "threshold": 0.05, "eos": "ignore"}
    run = tempo.compare(model, CAT, arms=[tempo.policies.visible(0.05), "greedy"], **options)
    assert run.arms == ("visible", "greedy")
    rules = {"isolated": "isolated", "near": Offset(0.5), "seen": VISIBLE}
    twins = tempo.compare(model, CAT, arms=rules, paired=True, alone=False, **options)
    assert twins.arms == ("isolated", "near@isolated", "seen@isolated")
    assert twins.settings["axes"]["near@isolated"] == ["positions"]
    with pytest.raises(InputError, match="expected arms by name or as policies, got Offset"):
        tempo.compare(model, CAT, arms=["isolated", Offset(0.5)], paired=True, **options)
    with pytest.raises(InputError, match="expected a policy for 'near', got Offset"):
        tempo.compare(model, CAT, arms=rules, **options)


def test_a_forward_keeps_what_is_named_and_nothing_else() -> None:
    model = model_of("llama")
    found = tempo.forward(model, CAT, keep=["residual", "values"])
    n = len(found.tokens)
    with torch.inference_mode():
        ids = torch.from_numpy(found.tokens)[None]
        states = model.hf(ids, output_hidden_states=True, use_cache=False).hidden_states
    assert found.residual.shape == (model.n_layers + 1, n, model.hf.config.hidden_size)
    # the last state of transformers is behind the final norm, so it is left out
    for ours, theirs in zip(found.residual[:-1], states[:-1], strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)
    assert found.values.shape == (model.n_layers, model.n_kv_heads, n, model.head_dim)
    with pytest.raises(InputError, match="logits") as said:
        _ = found.logits
    assert "\n" not in str(said.value)
