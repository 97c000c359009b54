"""What pairs can say at most: exact p-values of few pairs, and texts that stand twice."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tempo.errors import InputError
from tempo.prompts.pairs import load_pairs
from tempo_analysis.studies.concepts.separation import concept_heads


@pytest.mark.parametrize("seed", range(8))
def test_no_p_lies_below_what_all_swaps_of_so_few_pairs_allow(seed: int):
    """Swapping all pairs writes as much as swapping none, so the least p is 2 / 2^8."""
    rng = np.random.default_rng(seed)
    positive = rng.normal(1.0, 0.1, (8, 1, 2, 4)).astype(np.float32)
    negative = rng.normal(-1.0, 0.1, (8, 1, 2, 4)).astype(np.float32)
    out = rng.normal(0, 1, (1, 2, 4, 6)).astype(np.float32)
    found = concept_heads(positive, negative, out, permutations=20000)
    change = (positive - negative).astype(np.float64)
    signs = np.array(list(product((1, -1), repeat=8)))
    means = np.einsum("ki,ilhc->klhc", signs, change) / 8
    written = np.linalg.norm(np.einsum("klhc,lhcm->klhm", means, out), axis=-1)
    exact = (written >= written[0] * (1 - 1e-9)).mean(0)
    assert exact.min() >= 2 / 256
    np.testing.assert_allclose(found.p, exact, atol=2e-3)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_text_that_stands_twice_is_no_further_scenario(tmp_path: Path, side: str):
    rows = [{"id": str(n), "positive": f"now {n}", "negative": f"later {n}"} for n in range(12)]
    rows[7][side] = rows[2][side]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"different {side} texts .* got that of '7' twice"):
        load_pairs(path)
