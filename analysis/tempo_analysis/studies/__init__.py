"""Studies: one question about a model, from plan to page."""
