"""Follows one member of a parallel set through the layers."""
