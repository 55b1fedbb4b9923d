"""Diffusion and flow matching: process.py is the path and the loss, solvers.py goes back along it, model.py is the
family of models, unet.py the one whose network is a U-Net."""
