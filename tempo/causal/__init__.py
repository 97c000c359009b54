"""One causal forward of a finished text, and what is read from it or cut out of it."""
