"""Which heads tell the two sides of a concept apart, and what shows it."""
