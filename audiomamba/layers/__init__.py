"""Sequence layers, each `y, state = layer(x, state)` with x (batch, time >= 1, channels)."""
