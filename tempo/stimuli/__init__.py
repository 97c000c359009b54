"""The sequences that heads are asked about: what is fed, and which places are marked in it."""
