"""Models to and from diffusers: export.py writes what diffusers loads without this package, importing.py reads what it
wrote, sample.py is the script that goes along where there is no pipeline."""
