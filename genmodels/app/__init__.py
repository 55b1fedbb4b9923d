"""The page on which models are tried out, `genmodels app`. It needs the extra `app` (gradio)."""
