"""Boosts parallel members by rising doses and measures what follows."""
