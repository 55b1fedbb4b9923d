"""Vector quantisation: EMA and cosine codebooks, finite scalar and residual quantisation."""
