"""Scaling laws: how the loss falls with parameters, data and compute, and what a budget should buy."""
