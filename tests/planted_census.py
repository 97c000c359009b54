"""A planted census: known heads hold known roles, everything else is noise near chance."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tempo_analysis.report.document import Document
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.studies.heads.assignment import RoleScores, assign_role, role_scores
from tempo_analysis.studies.heads.depth import depth_of
from tempo_analysis.studies.heads.detectors.rows import HeadScore
from tempo_analysis.studies.heads.findings import Census

LAYERS, HEADS, OFFSETS, SEQUENCES = 6, 4, 16, 12
CHANCE = 0.1
HELD = {
    "previous_token": [(0, 1), (1, 2)],
    "induction": [(4, 3)],
    "positional": [(0, 1)],
    "bos_sink": [(layer, head) for layer in range(2, 6) for head in range(3)],
    "sibling_attending": [],
}
EMPTY = (5, 3)
"""This head has no data for induction."""
WEIGHT_ROLE = "ov_copying"
COPIES, OPPOSES = (3, 0), (3, 1)
SILENCED = {(0, 1): 0.25, (4, 3): 0.5}
REFUSED = {"retrieval": "expected at least 8 sequences to assign retrieval, got 3; add sequences"}


def planted_role(role: str, held: list[tuple[int, int]], *, seed: int) -> RoleScores:
    """Holders score near 0.8, all others near chance."""
    rng = np.random.default_rng(seed)
    mean = np.full((LAYERS, HEADS), CHANCE)
    for head in held:
        mean[head] = 0.8
    chance = np.full_like(mean, CHANCE)
    count = np.full(LAYERS, 20)

    def drawn(middle: np.ndarray) -> HeadScore:
        values = middle + rng.normal(0, 0.02, middle.shape)
        if role == "induction":
            values[EMPTY] = np.nan
        return HeadScore(values, chance, count)

    return role_scores(
        role,
        [drawn(mean) for _ in range(SEQUENCES)],
        [drawn(chance) for _ in range(SEQUENCES)],
        threshold=0.3,
    )


def planted_census(*, fingerprint: str = "planted", name: str = "planted") -> Census:
    """Five roles of sequences, one of weights, one further, one refused, and every detail."""
    roles = {role: planted_role(role, held, seed=i) for i, (role, held) in enumerate(HELD.items())}
    roles[WEIGHT_ROLE] = _copying()
    more = {"prefix_matching": planted_role("prefix_matching", [(4, 3)], seed=9)}
    return Census(
        model={
            "name": name,
            "revision": None,
            "fingerprint": fingerprint,
            "tokenizer_hash": "0" * 64,
            "dtype": "float32",
            "family": "llama",
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "n_kv_heads": 2,
            "queries_per_kv_head": 2,
            "head_dim": 8,
        },
        roles=roles,
        more=more,
        depth={role: depth_of(found) for role, found in (roles | more).items()},
        refused=REFUSED,
        detail=_detail(),
    )


def planted_document(**changed: str) -> Document:
    return planted_census(**changed).document()


def _copying() -> RoleScores:
    score = np.zeros((LAYERS, HEADS))
    score[COPIES], score[OPPOSES] = 0.9, -0.7
    p = np.where(score > 0.5, 1e-6, 1.0)
    return assign_role(
        WEIGHT_ROLE,
        score,
        np.zeros_like(score),
        null_p99=0.2,
        p=p,
        threshold=0.5,
        unit="net share of the eigenvalues",
    )


def _detail() -> Mapping[str, Any]:
    rng = np.random.default_rng(3)
    shape = (LAYERS, HEADS)
    even = np.full((*shape, OFFSETS), 1 / OFFSETS)
    profile = even.copy()
    profile[0, 1] = 0.2 / (OFFSETS - 1)
    profile[0, 1, 1] = 0.8
    profile[..., OFFSETS - 2 :] = np.nan
    entropy = rng.uniform(0.3, 0.9, shape)
    measures = {
        "normalised": (entropy * 0.6, 1.0),
        "normalised_without_sink": (entropy, 1.0),
        "value_share_of_sink": (rng.uniform(0, 1, shape), np.nan),
    }
    rng_loss = np.random.default_rng(4)
    return {
        "spectrum": {
            name: {"value": value, "chance": np.full(shape, chance)}
            for name, (value, chance) in measures.items()
        },
        "offsets": {"profile": profile, "even": even, "peak": np.ones(shape, int)},
        "sinks": {"rate_percent": 50.0, "epsilon": 0.3, "by_head_percent": 100 * entropy},
        "activations": {
            "largest_over_median": np.geomspace(5, 2000, LAYERS + 1),
            "channel_of_largest": [7, 7, *[3] * (LAYERS - 1)],
        },
        "nll_nats": {"mean": 2.5, "n": SEQUENCES},
        "texts": {
            "source": "planted texts",
            "sha256": "1" * 64,
            "tokens_in_corpus": 1000,
            "bos": 1,
            "delimiters": [".", ","],
            "lost_delimiters": ["\n\n"],
        },
        "effects": {
            "texts": 8,
            "tokens": 64,
            "replacement": "zero",
            "base_nll": 2.5,
            "heads": {
                f"L{layer}H{head}": estimate_with_interval(loss + rng_loss.normal(0, 0.01, 12))
                for (layer, head), loss in SILENCED.items()
            },
            "left_out": 0,
        },
        "battery": {
            "roles": [*HELD, WEIGHT_ROLE, *REFUSED],
            "sequences": SEQUENCES,
            "length": 32,
            "seed": 0,
            "corpus": "planted texts",
            "corpus_sha256": "1" * 64,
        },
    }
