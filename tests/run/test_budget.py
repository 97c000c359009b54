"""The memory plan against what a run really takes."""

from pathlib import Path

import pytest

import tempo
from tempo.errors import InputError
from tempo.policy.presets import Policy
from tempo.policy.selection import TopK
from tempo.run.api import compare_request
from tempo.run.batching import layout
from tempo.run.budget import (
    MAX_BATCH,
    Demand,
    Shape,
    batches,
    choose_level,
    human,
    kv_bytes,
    trace_bytes,
)
from tempo.run.options import parse_bytes, read_config
from tempo.vocabulary import parse_numbers, spell_numbers
from tests.decoding import model_of, random_prompt

SHAPE = Shape(30, 9, 3, 64, 49152, 4, 30, 9)
DEMAND = Demand(20, 10, 8, "weights")


@pytest.mark.parametrize("level", ["weights", "qk", "reduced"])
def test_the_plan_of_a_trace_is_close_to_its_files(tmp_path: Path, level: str) -> None:
    model = model_of("llama")
    policy = Policy(TopK(3))
    run = tempo.generate(
        model,
        random_prompt(model, 150),
        policy=policy,
        steps=30,
        capture=level,
        eos="ignore",
        out=tmp_path / "run",
    )
    assert run[0].slots.width[-1] == 3
    shape = Shape(2, 4, 2, 16, model.vocab_size, 4, 2, 4)
    planned = trace_bytes(shape, Demand(150, 30, 3, level), width=3)
    files = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*.safetensors"))
    assert 0.6 < files / planned < 1.6


def test_keys_are_smaller_than_rows_only_beyond_some_length() -> None:
    def size(n_prompt: int, level: str) -> int:
        return trace_bytes(SHAPE, Demand(n_prompt, 10, 2, level), width=2)

    assert size(60, "weights") < size(60, "qk")
    assert size(400, "weights") > size(400, "qk")
    assert size(60, "reduced") < size(60, "weights")


def test_the_cache_is_two_numbers_for_each_layer_head_channel_and_slot() -> None:
    assert kv_bytes(SHAPE, DEMAND) == 2 * 30 * 3 * 64 * 4 * 100


def test_batches_keep_the_order_and_the_budget() -> None:
    demands = [DEMAND] * 150
    groups = batches(SHAPE, demands, budget_bytes=10**12)
    assert [len(group) for group in groups] == [MAX_BATCH, MAX_BATCH, 150 - 2 * MAX_BATCH]
    assert [number for group in groups for number in group] == list(range(150))
    small = batches(SHAPE, demands, budget_bytes=2 * 10**8)
    assert max(len(group) for group in small) < MAX_BATCH


def test_the_level_follows_the_budget() -> None:
    demands = [DEMAND] * 400
    assert choose_level(SHAPE, demands, budget_bytes=2 * 10**9) == "weights"
    assert choose_level(SHAPE, demands, budget_bytes=10**8) == "reduced"


def test_the_budget_reaches_the_run() -> None:
    model = model_of("llama")
    prompts = ["the cat sat on"] * 6
    wide = layout(compare_request(model, prompts, steps=4))
    tight = layout(compare_request(model, prompts, steps=4, budget="400KB"))
    assert wide.level == "weights"
    assert tight.level == "reduced"
    assert len(tight.batches) > len(wide.batches) == 2
    assert tight.memory.n_traces == 30
    assert tight.memory.peak_bytes <= 400_000
    by_arm = {pair[1]: batch.capture.level for batch in tight.batches for pair in batch.pairs}
    assert by_arm.pop("greedy") == "weights"  # its labels come from the other arms
    assert set(by_arm.values()) == {"reduced"}
    assert wide.memory.trace_bytes < wide.memory.trace_bytes_at_most


def test_sizes_and_numbers_are_read_and_refused() -> None:
    assert parse_bytes("2GB") == 2 * 10**9
    assert parse_bytes(" 1.5 mb ") == 1_500_000
    assert parse_numbers("0,3,5-7", what="layers") == (0, 3, 5, 6, 7)
    assert human(1_234_000) == "1.23 MB"
    for text in ("2 apples", "", "-1GB"):
        with pytest.raises(InputError, match="size such as"):
            parse_bytes(text)
    with pytest.raises(InputError, match="expected layers such as 0,3,10-14"):
        parse_numbers("3-", what="layers")
    for numbers in ([], [4], [0, 1], [0, 1, 2], [9, 0, 3, 10, 11, 3]):
        text = spell_numbers(numbers)
        assert not numbers or parse_numbers(text, what="layers") == tuple(sorted({*numbers}))
    assert spell_numbers([9, 0, 3, 10, 11, 3]) == "0,3,9-11"


def test_config_files_are_toml(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text("steps = 4\n")
    assert read_config(tmp_path / "good.toml") == {"steps": 4}
    (tmp_path / "bad.toml").write_text("steps: 4\n")
    with pytest.raises(InputError, match="expected TOML"):
        read_config(tmp_path / "bad.toml")
    with pytest.raises(InputError, match="nothing there"):
        read_config(tmp_path / "none.toml")
