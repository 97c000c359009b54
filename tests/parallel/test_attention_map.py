from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tempo.errors import InputError, LevelError
from tempo.testing.planted import noisy, planted_trace, uniform, with_sink
from tempo.trace.trace import Trace
from tempo.vocabulary import Head
from tempo_analysis.parallel.trace_figures import attention_figure, rows_of_head, siblings
from tempo_analysis.report.figure_style import COLOURS, save_figure

HEAD = Head(1, 0)


@pytest.fixture(scope="module")
def isolated() -> Trace:
    return planted_trace(widths=(2, 1, 3), rows=noisy(uniform, 1.0))


def test_every_row_is_that_of_the_trace_and_nan_where_nothing_may_be_seen(isolated: Trace):
    rows = rows_of_head(isolated, head=HEAD)
    assert rows.shape == (6, 11)
    for row, slot in zip(rows, range(5, 11), strict=True):
        step = int(isolated.slots.step[slot])
        query = int(isolated.slots.rank[slot])
        n = isolated.n_slots(step)
        visible = isolated.visible(step)[1, query]
        np.testing.assert_array_equal(
            row[:n][visible], isolated.attention(step)[1, 0, query][visible]
        )
        assert np.isnan(row[:n][~visible]).all()
        assert np.isnan(row[n:]).all()
        assert np.nansum(row) == pytest.approx(1, abs=1e-5)


def test_a_slot_that_may_be_seen_and_gets_nothing_is_zero():
    rows = rows_of_head(planted_trace(widths=(2, 1), rows=with_sink(1.0)), head=HEAD)
    np.testing.assert_array_equal(rows[0], [1, 0, 0, 0, 0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(rows[2], [1, 0, 0, 0, 0, 0, 0, 0])


def test_the_head_is_looked_up_by_its_number_and_not_by_its_place():
    trace = planted_trace(widths=(1,), rows=noisy(uniform, 1.0))
    shifted = replace(trace, header=replace(trace.header, layers=(3, 7), heads=(2, 5)))
    found = rows_of_head(shifted, head=Head(7, 2))
    np.testing.assert_array_equal(found, rows_of_head(trace, head=Head(1, 0)))


def test_siblings_are_the_other_members_of_the_set(isolated: Trace):
    pairs = {tuple(pair) for pair in np.argwhere(siblings(isolated)).tolist()}
    assert pairs == {(0, 6), (1, 5), (3, 9), (3, 10), (4, 8), (4, 10), (5, 8), (5, 9)}


def test_the_siblings_are_outlined_and_the_cells_drawn(isolated: Trace, tmp_path):
    visible = planted_trace(widths=(2, 1, 3), relation="visible")
    figure = attention_figure({"isolated": isolated, "a $visible$ twin": visible}, head=HEAD)
    assert save_figure(figure, tmp_path, "rows") == "rows.png"
    for axes, trace in zip(figure.axes[:2], (isolated, visible), strict=True):
        drawn = axes.images[0].get_array()
        np.testing.assert_array_equal(np.ma.filled(drawn, np.nan), rows_of_head(trace, head=HEAD))
        corners = {tuple(round(x + 0.5) for x in box.get_xy()) for box in axes.patches}
        assert corners == {(slot, row) for row, slot in np.argwhere(siblings(trace)).tolist()}
        assert {to_hex(box.get_edgecolor()) for box in axes.patches} == {COLOURS[1].lower()}
    assert figure.axes[2].get_ylabel() == "attention of L1H0"


@pytest.mark.parametrize("head", [Head(2, 0), Head(0, 2)])
def test_a_head_that_was_not_captured_is_refused(isolated: Trace, head: Head):
    with pytest.raises(InputError, match="capture it or choose another"):
        rows_of_head(isolated, head=head)


def test_a_trace_without_sets_or_rows_and_no_trace_at_all_are_refused():
    with pytest.raises(InputError, match="expected a trace with sets"):
        rows_of_head(planted_trace(widths=()), head=HEAD)
    with pytest.raises(LevelError):
        rows_of_head(planted_trace(level="reduced"), head=HEAD)
    with pytest.raises(InputError, match="at least one trace"):
        attention_figure({}, head=HEAD)
