"""Measurements, one command each; every one prints its figure, the floor or rival of the same run, and the ratio."""
