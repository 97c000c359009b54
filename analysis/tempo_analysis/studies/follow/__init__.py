"""One member of a parallel set, measured layer by layer."""
