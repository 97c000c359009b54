"""One member of a parallel set, followed through the layers."""
