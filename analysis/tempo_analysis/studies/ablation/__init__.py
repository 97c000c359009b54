"""Effects of removing heads, values and edges at one token."""
