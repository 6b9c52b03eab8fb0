"""Losses, the loop, and what is kept of a training."""
