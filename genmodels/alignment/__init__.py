"""Alignment: training a saved model further towards what is preferred."""
