"""Training: one loop for every family. `fit` is the loop, and `recipe` holds its settings."""
