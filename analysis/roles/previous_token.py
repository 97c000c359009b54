"""Does a head attend to the token before, on the diagonal of offset 1?

Source: the previous-token detector of the Goodfire head suite.
"""

from analysis.roles.rows import HeadScore, SequenceRows, mean_mass, offset_mask, require_length

THRESHOLD = 0.3


def previous_token(rows: SequenceRows) -> HeadScore:
    """Mean over queries q >= 1 of the weight on slot q - 1.

    Query 1 is in, though it has two slots only. Chance depends on the length. TransformerLens
    divides by all queries instead: `analysis.roles.lens_convention`.

    The null is the same score of rows with shuffled keys (`analysis.roles.shuffling`), whose
    expectation is the mean of each row. Random text is no null: a positional head is right to keep
    its score there, so that score is reported beside this one and takes no role away.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="the token before")
    return mean_mass(rows, offset_mask(rows, 1))
