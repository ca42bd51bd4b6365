"""Sequence layers, each `y, state = layer(x, state)` with x (batch, time, channels) and any time >= 1."""
