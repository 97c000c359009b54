"""Twins, for users: what a twin may change, and what two traces differ in.

The rules live in `tempo.policy.override`, the comparison in `tempo.trace.compare`; `tempo.replay`
and `tempo.compare(..., paired=True)` decode twins.

Example:
    >>> run = tempo.replay(trace, policy=tempo.twins.parse_change("offset:0.01"))
    >>> tempo.twins.changed_axes(trace, run.trace(arm="twin"))
    frozenset({'positions'})
"""

from tempo.policy.override import Change, parse_change
from tempo.trace.compare import AXES, changed_axes, check_axes

__all__ = ["AXES", "Change", "changed_axes", "check_axes", "parse_change"]
