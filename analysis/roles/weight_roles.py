"""Roles that weights alone decide, assigned by the same three conditions as those of sequences."""

import numpy as np

from analysis.circuits import copying
from analysis.circuits.copying import OvCopying
from analysis.circuits.successor import SuccessorOv
from analysis.circuits.suppression import CopySuppression
from analysis.roles.assignment import RoleScores, judged
from tempo_analysis.stats.intervals import SEED

COPYING = 0.5
"""Cut on the eigenvalue score: three quarters of the size of the eigenvalues copy. It is ours."""

SUCCESSOR = 0.5
"""Cut on the share of successions: more right than wrong. It is ours."""

SUPPRESSION = 0.5
"""Cut on the share of tokens that a head lowers when it attends to them. It is ours."""


def copying_role(found: OvCopying) -> RoleScores:
    """Eigenvalue score of the whole OV circuit; the null is random heads between the same ends."""
    return judged(
        "ov_copying",
        found.full,
        np.full_like(found.full, copying.CHANCE),
        null_p99=found.null_p99,
        p=found.p,
        threshold=COPYING,
        unit="net share of the eigenvalues",
    )


def successor_role(found: SuccessorOv) -> RoleScores:
    """Share of successions; the null is a head that picks evenly in the family, exactly."""
    return judged(
        "successor_ov",
        found.score,
        np.full_like(found.score, found.chance),
        null_p99=found.null_p99,
        p=found.p,
        threshold=SUCCESSOR,
        unit="share of the successions",
    )


def suppression_role(found: CopySuppression, *, seed: int = SEED) -> RoleScores:
    """Share of tokens lowered; the null is the same with every token under another one's name.

    Whether the head also looks for a token about to be said (`qk`) is reported and not asked: it
    must beat all other tokens of the sample, so it falls with the size of the sample. Tokens are
    what repeats: the p-value pairs each token with itself under the other name.
    """
    hits, control = (
        np.moveaxis(each, -1, 0).astype(np.float64) for each in (found.ov_hits, found.ov_control)
    )
    return judged(
        "copy_suppression",
        found.ov,
        np.full_like(found.ov, found.ov_chance),
        per_sequence=hits,
        control=control,
        threshold=SUPPRESSION,
        unit="share of the tokens",
        seed=seed,
    )
