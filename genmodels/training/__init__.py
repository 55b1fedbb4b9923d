"""Training: one loop for every family. `fit` is the loop, `recipe` is what it is told."""
