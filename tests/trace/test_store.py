"""Traces on disk: round trips, and one test for each way a folder can be wrong."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

import tempo
from tempo import policies
from tempo.errors import CorruptTraceError, FormatVersionError, InputError, LevelError, OutputError
from tempo.policy.biases import Boost, MassNeutral
from tempo.policy.presets import Policy
from tempo.policy.selection import DROP_REASONS, TopK
from tempo.policy.visibility import VISIBLE
from tempo.trace.run_folder import _LazyTraces, trace_folder
from tempo.trace.store import (
    SHARD_STEPS,
    ShardTensors,
    TraceWriter,
    header_document,
    header_from,
    read_trace,
    write_tensors,
)
from tempo.trace.trace import Trace
from tests.decoding import model_of, random_prompt

LEVELS = ("weights", "qk", "reduced")
BIASED = Policy(TopK(3), see=VISIBLE, bias=(MassNeutral(), Boost(0.7)))


def decoded(family: str = "llama", *, out: Path | None = None, policy=None, **options) -> Trace:
    model = model_of(family)
    run = tempo.generate(
        model,
        random_prompt(model, 9),
        policy=policy or policies.visible(0.08),
        out=out,
        steps=options.pop("steps", 5),
        eos="ignore",
        **options,
    )
    return run[0]


def edit_header(folder: Path, **changes) -> None:
    file = folder / "trace.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    decoded(out=tmp_path / "run")
    return trace_folder(tmp_path / "run", "p0000", "visible")


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_on_disk_is_what_was_in_memory(tmp_path: Path, level: str) -> None:
    memory = decoded(capture=level, steps=SHARD_STEPS + 3)
    disk = tempo.open_trace(
        decoded(out=tmp_path / "run", capture=level, steps=SHARD_STEPS + 3) and tmp_path / "run"
    )
    assert len(list(trace_folder(tmp_path / "run", "p0000", "visible").glob("*.safetensors"))) == 2
    assert header_document(disk.header) == header_document(memory.header)
    assert set(disk.tensors) == set(memory.tensors)
    for name in memory.tensors:
        assert disk.tensors[name].dtype == memory.tensors[name].dtype
        np.testing.assert_array_equal(disk.tensors[name], memory.tensors[name])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_oss", "mistral"])
def test_rows_recomputed_from_qk_equal_the_rows_themselves(family: str) -> None:
    rows = decoded(family, policy=BIASED)
    recomputed = decoded(family, policy=BIASED, capture="qk")
    for step in range(6):
        np.testing.assert_allclose(recomputed.attention(step), rows.attention(step), atol=1e-6)
        np.testing.assert_allclose(recomputed.logsumexp(step), rows.logsumexp(step), atol=1e-5)
        np.testing.assert_array_equal(recomputed.visible(step), rows.visible(step))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_reduced_rows_equal_the_rows_summed(family: str) -> None:
    rows, reduced = decoded(family), decoded(family, capture="reduced")
    for step in range(6):
        np.testing.assert_allclose(reduced.group_mass(step), rows.group_mass(step), atol=1e-6)
        np.testing.assert_allclose(
            reduced.group_mass(step).sum(-1), rows.attention(step).sum(-1), atol=1e-5
        )
        np.testing.assert_allclose(reduced.entropy_nats(step), rows.entropy_nats(step), atol=1e-5)
        np.testing.assert_allclose(reduced.max_weight(step), rows.max_weight(step), atol=1e-6)
        np.testing.assert_array_equal(reduced.group_count(step), rows.group_count(step))
        assert (rows.group_count(step).sum(-1) == rows.visible(step).sum(-1)).all()


def test_raw_scores_follow_from_rows_and_logsumexp() -> None:
    qk = decoded(capture="qk")
    step = 4
    scores = (
        np.einsum("hqc,hsc->hqs", qk.queries(step)[1], np.repeat(qk.keys(step)[1], 2, 0))
        * qk.header.scaling[1]
    )
    seen = qk.visible(step)[1]
    from_rows = np.log(qk.attention(step)[1]) + qk.logsumexp(step)[1][..., None]
    np.testing.assert_allclose(from_rows[:, seen], scores[:, seen], atol=1e-4)


def test_chosen_layers_and_heads_are_those_of_the_whole(tmp_path: Path) -> None:
    whole = decoded()
    part = decoded(layers="1", heads="0,2-3", out=tmp_path / "run")
    assert part.layers == (1,)
    assert part.heads == (0, 2, 3)
    assert str(part.head(0, 1)) == "L1H2"
    np.testing.assert_array_equal(part.attention(3), whole.attention(3)[[1]][:, [0, 2, 3]])


def test_a_level_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(LevelError, match="weights"):
        decoded(capture="reduced").attention(1)
    with pytest.raises(LevelError, match="'q'"):
        decoded().queries(1)
    with pytest.raises(InputError, match="step from 0 to 5"):
        decoded().attention(6)


def test_readouts_hold_the_best_tokens_or_all(tmp_path: Path) -> None:
    trace = decoded(out=tmp_path / "run", readouts="full")
    readout = trace.readout(2)
    assert len(readout.token) == model_of("llama").vocab_size
    assert readout.tail_mass == 0
    assert np.exp(readout.log_probability).sum() == pytest.approx(1, abs=1e-5)
    chosen = trace.slots.token[trace.members(3)]
    assert set(chosen) <= set(readout.token[: len(chosen) + 1])


def test_dropped_tokens_are_named_with_their_reason() -> None:
    trace = decoded(policy=policies.visible(0.01, max_width=2))
    drops = [drop for step in range(1, 6) for drop in trace.dropped(step)]
    assert drops
    assert {drop.reason for drop in drops} <= set(DROP_REASONS)
    assert all(drop.probability >= 0.01 for drop in drops)
    assert all(drop.token in trace.header.tokens for drop in drops)


def test_reading_needs_no_torch(folder: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, tempo; trace = tempo.open_trace(sys.argv[1]); trace.attention(2); "
        "import analysis; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_reading_a_step_leaves_the_others_on_disk(folder: Path, monkeypatch) -> None:
    trace = read_trace(folder)
    read: list[str] = []
    original = type(trace.tensors).__getitem__
    monkeypatch.setattr(
        type(trace.tensors),
        "__getitem__",
        lambda self, name: (read.append(name), original(self, name))[1],
    )
    trace.attention(3)
    assert read == ["step/00003/weights"]


def test_headers_survive_json(folder: Path) -> None:
    header = read_trace(folder).header
    assert header_from(json.loads(json.dumps(header_document(header)))) == header


def test_a_missing_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptTraceError, match=r"no trace\.json"):
        tempo.open_trace(tmp_path)


def test_a_header_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "trace.json").write_text('{"format": 1,')
    with pytest.raises(CorruptTraceError, match="expected JSON"):
        read_trace(folder)


def test_another_document_is_refused(folder: Path) -> None:
    edit_header(folder, kind="something")
    with pytest.raises(CorruptTraceError, match="another document"):
        read_trace(folder)


@pytest.mark.parametrize("number", [0, 2, None, "1"])
def test_an_unknown_format_is_refused(folder: Path, number) -> None:
    edit_header(folder, format=number)
    with pytest.raises(FormatVersionError, match="expected format 1"):
        read_trace(folder)


def test_a_header_without_a_key_is_refused(folder: Path) -> None:
    document = json.loads((folder / "trace.json").read_text())
    del document["scaling"]
    (folder / "trace.json").write_text(json.dumps(document))
    with pytest.raises(CorruptTraceError, match="scaling"):
        read_trace(folder)


def test_a_hole_between_shards_is_refused(folder: Path) -> None:
    edit_header(
        folder, shards=[{"file": "shard-00000.safetensors", "first": 1, "last": 5, "sha256": ""}]
    )
    with pytest.raises(CorruptTraceError, match="steps 0 to 5"):
        read_trace(folder)


def test_a_truncated_shard_is_refused(folder: Path) -> None:
    shard = folder / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptTraceError, match="whole shard"):
        read_trace(folder).attention(1)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(CorruptTraceError, match="whole shard"):
        read_trace(folder).attention(1)


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"No space"):
        write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(3)})
    assert not (tmp_path / "x.safetensors").exists()


def test_a_full_disk_is_one_clear_error_and_the_prefix_stays_readable(
    tmp_path: Path, monkeypatch
) -> None:
    original, calls = write_tensors, []

    def fills_up(path: Path, tensors) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return original(path, tensors)

    monkeypatch.setattr("tempo.trace.store.write_tensors", fills_up)
    with pytest.raises(OutputError, match=r"No space left.*same command again"):
        decoded(out=tmp_path / "run", steps=2 * SHARD_STEPS)
    prefix = read_trace(trace_folder(tmp_path / "run", "p0000", "visible"))
    assert prefix.n_steps == SHARD_STEPS - 1
    assert prefix.header.stopped == "running"
    np.testing.assert_array_equal(prefix.attention(3), decoded(steps=4).attention(3))


def test_shards_stream_so_that_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    trace = decoded()
    writer = TraceWriter(tmp_path / "t", trace.header)
    pending: list[int] = []
    for step in range(40):
        writer.add(step, {"weights": np.zeros((2, 2, 1, 1000), np.float32)}, trace.header)
        pending.append(sum(value.nbytes for value in writer._pending.values()))
    assert max(pending) <= SHARD_STEPS * 16000
    assert len(list((tmp_path / "t").glob("*.safetensors"))) == 40 // SHARD_STEPS


def test_shards_are_as_readable_as_the_header(folder: Path) -> None:
    modes = {file.suffix: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes[".safetensors"] == modes[".json"]


def test_changed_bytes_in_a_shard_are_refused(folder: Path) -> None:
    shard = folder / "shard-00000.safetensors"
    digest = json.loads((folder / "trace.json").read_text())["shards"][0]["sha256"]
    assert ShardTensors({shard: digest})["step/00001/weights"].size
    content = bytearray(shard.read_bytes())
    content[-2000:-1000] = bytes(1000)
    shard.write_bytes(content)
    with pytest.raises(CorruptTraceError, match="bytes that were written"):
        ShardTensors({shard: digest})["step/00001/weights"]


def test_a_trace_put_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    model = model_of("llama")
    prompts = [random_prompt(model, 5, 1), random_prompt(model, 5, 2)]
    tempo.generate(model, prompts, steps=2, out=tmp_path / "run")
    traces = tmp_path / "run" / "traces"
    shutil.rmtree(traces / "p0000")
    shutil.copytree(traces / "p0001", traces / "p0000")
    with pytest.raises(CorruptTraceError, match="got that of p0001/isolated"):
        _LazyTraces(tmp_path / "run", [("p0000", "isolated")])["p0000", "isolated"]
