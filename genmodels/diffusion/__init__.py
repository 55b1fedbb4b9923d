"""Diffusion and flow matching.

process.py, ddpm.py    the path from data to noise, and what the network predicts
model.py               the training loss and the denoiser of every diffusion model
unet.py                the family whose network is a U-Net (the transformer is genmodels/dit.py)
solvers.py             time steps, and solvers as pure functions
sampler.py             from noise to samples: start reading here
editing.py             inversion, editing, inpainting, interpolation
likelihood.py          bits per dimension
"""
