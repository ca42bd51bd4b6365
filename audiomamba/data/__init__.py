"""Audio on disk as tokens: prepared once, then read in any order without decoding."""

from audiomamba.data.tokens import Split, TokenFile, TokenStore

__all__ = ["Split", "TokenFile", "TokenStore"]
