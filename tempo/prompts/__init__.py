"""Texts that models are run on: suites, corpora, names, needles and pairs."""
