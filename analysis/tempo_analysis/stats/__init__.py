"""Intervals, bands, averages, association, and the sentences that follow from them."""
