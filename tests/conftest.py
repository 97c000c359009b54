"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("tempo", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("tempo")
