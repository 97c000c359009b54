"""Plain causal forwards of a finished text: what is read from them, and what is cut out."""
