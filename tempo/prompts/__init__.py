"""Texts that models are asked about: suites, corpora, names, needles and pairs."""
