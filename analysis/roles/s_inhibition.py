"""Does a head attend from the end of the prompt to the second mention of the subject?

The attention half of S-inhibition (Wang et al. 2022, indirect object identification; metrics A7).
By itself it names candidates: that the head suppresses the name is for its weights, and for its
ablation, to say.
"""

import numpy as np

from analysis.roles.rows import HeadScore, SequenceRows, at_cells
from tempo.errors import InputError

THRESHOLD = 0.1


def s_inhibition(rows: SequenceRows, *, end: int, second_subject: int) -> HeadScore:
    """Weight from the end to the second mention of the subject.

    The null is the same cell of the ABC prompt, in which a third name stands there: a head that
    attends to any name at that place, or to that place, keeps its score.

    Args:
        rows: The rows of one prompt.
        end: Slot of the last token, which predicts the name.
        second_subject: Slot of the second mention; in the ABC prompt, of the third name.

    Raises:
        InputError: The second mention does not come before the end.
    """
    if not 0 <= second_subject < end < rows.n_queries:
        raise InputError(
            f"expected 0 <= second mention < end < {rows.n_queries}, got {second_subject} and "
            f"{end}; give the slots in this prompt"
        )
    return at_cells(rows, query=np.array([end]), slot=np.array([second_subject]))
