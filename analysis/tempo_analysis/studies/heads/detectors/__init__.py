"""One detector for each role: which slots a head attends to, or what its weights write."""
