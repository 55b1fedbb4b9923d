"""Vectors to codes of a finite book and back: EMA and cosine codebooks, finite scalars, residual levels."""
