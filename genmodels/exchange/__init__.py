"""Exchange of models with diffusers and transformers; export as ONNX, a web page and a Space.

export.py      writes folders that diffusers loads without this package
autoencoder.py codecs as autoencoders of diffusers
importing.py   reads pipelines of diffusers
clip.py        CLIP, in both directions with transformers
custom.py      exports what no pipeline of diffusers supports: programs, and the code that
               samples with them (pipeline.py, program.py)
dit.py         weights of diffusion transformers
experts.py     mixtures of experts, in both directions with transformers
scheduler.py   configs of schedulers
methods.py     methods that need few evaluations, as modules of tensors
onnx.py        ONNX files of them
web.py         a static page, page/, that draws with them by the files of runtime.py
space.py       a Space of the Hugging Face Hub
"""
