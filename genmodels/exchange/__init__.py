"""Exchange of models with diffusers and transformers.

export.py      writes folders that diffusers loads without this package
autoencoder.py codecs as autoencoders of diffusers
importing.py   reads pipelines of diffusers
clip.py        CLIP, in both directions with transformers
sample.py      script that is added to an export for which diffusers has no pipeline
dit.py         weights of diffusion transformers
scheduler.py   configs of schedulers
"""
