"""Settings of all tests."""

import torch
from hypothesis import settings

settings.register_profile("tempo", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("tempo")

# Tiny models gain nothing from more threads, and waiting for a busy core costs a lot.
torch.set_num_threads(1)
