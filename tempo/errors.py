"""What a caller can do wrong, one class for each thing that can be put right."""


class TempoError(Exception):
    """Something the caller can fix; the message says what was expected, got, and what to do."""


class InputError(TempoError):
    """An argument, an option or a prompt that cannot be used."""


class TwinError(InputError):
    """Two traces that were to differ in one thing only, and differ in another."""


class ModelError(TempoError):
    """A model that cannot be found, loaded or measured."""


class NumericalError(TempoError):
    """The model produced NaN or infinite logits."""


class TraceError(TempoError):
    """A trace or run folder that cannot be read or written."""


class CorruptTraceError(TraceError):
    """A trace whose files contradict each other or are damaged."""


class FormatVersionError(TraceError):
    """A trace or run in a format this version does not know."""


class OutputError(TraceError):
    """An output folder that is in use, or a disk that refuses to be written."""


class LevelError(TempoError):
    """The trace was captured at a level that does not hold what is read."""


class NoParallelSetsError(TempoError):
    """No row of the data may see a parallel set, so the question has no answer."""


class TooFewPromptsError(TempoError):
    """Fewer prompts than an interval needs."""


class Interrupted(TempoError):
    """The run was stopped by the user; every completed step is on disk."""
