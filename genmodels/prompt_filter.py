"""Prompt filter: refuses prompts that images should not be sampled from.

It is a list of words, or a classifier of sentences in the layout of transformers. The images
themselves are looked at by the safety checker (`genmodels.safety`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from genmodels.reading import in_one_line, read_text

Reason = Callable[[str], str]
"""Returns why a prompt is refused, as a phrase, or "" if it is not."""
ALLOWED = 0
"""Class of a classifier that is not refused, such as "safe" or "not toxic"."""


def check_prompts(prompts: Sequence[str], path: Path) -> None:
    """Check prompts by the filter at `path`.

    Args:
        prompts: the prompts.
        path: a text file with a word or phrase on each line, or the folder of a sequence classifier
            of transformers, whose class 0 is what is allowed.

    Raises:
        ValueError: if a prompt is refused, or there is no filter at `path`.
    """
    if not prompts:
        raise ValueError(f"--prompt-filter {path} checks prompts: give --prompt or --prompts")
    reason = classifier(path) if path.is_dir() else word_list(path)
    for number, prompt in enumerate(prompts, start=1):
        if why := reason(prompt):
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            raise ValueError(f"{which}, {prompt[:80]!r}, is refused: {path} {why}")


def word_list(path: Path) -> Reason:
    """Return a filter of whole words and phrases. Upper and lower case, composed characters and
    spaces make no difference; lines that begin with # are comments.

    Raises:
        ValueError: if the file lists nothing.
    """
    try:
        lines = [_plain(line) for line in read_text(path).splitlines() if not line.lstrip().startswith("#")]
    except FileNotFoundError:
        raise ValueError(f"--prompt-filter {path}: no such file or folder") from None
    words = [line for line in lines if line]
    if not words:
        raise ValueError(f"--prompt-filter {path} lists no words: write a word or phrase on each line")
    # The longest first, so that the message names the whole phrase.
    listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{listed})(?!\w)")

    def reason(prompt: str) -> str:
        match = pattern.search(_plain(prompt))
        return f"lists {match.group()!r}" if match else ""

    return reason


def _plain(text: str) -> str:
    return " ".join(normalize("NFKC", text).casefold().split())


def classifier(folder: Path) -> Reason:
    """Return a filter by a sequence classifier of transformers, such as one for toxic language.

    Raises:
        ValueError: if transformers is not installed, or the folder holds no such classifier.
    """
    kinds = ("AutoModelForSequenceClassification", "AutoTokenizer")
    model, tokenizer = load_classifier(folder, "--prompt-filter", "a sequence classifier", *kinds)
    import torch

    def reason(prompt: str) -> str:
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt", truncation=True)).logits[0]
        found = int(logits.argmax())
        if found == ALLOWED:
            return ""
        return f"classifies it as {model.config.id2label[found]!r} ({logits.softmax(0)[found]:.2f})"

    return reason


def load_classifier(folder: Path, flag: str, what: str, model: str, preparation: str, **options: Any) -> Any:
    """Load a classifier of transformers and what prepares its inputs. Its weights are safetensors,
    and no code of the folder is executed.

    Args:
        folder: the folder.
        flag: the flag that names it, for messages.
        what: what it is to be, for messages.
        model, preparation: names of the classes of transformers.
        **options: of the preparation.

    Returns:
        The classifier, in float32 and in eval mode, and the preparation.

    Raises:
        ValueError: if transformers is not installed, or the folder holds no such classifier.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{flag} {folder} needs transformers: pip install 'genmodels[evaluation]'") from None
    import torch

    where: Any = {"local_files_only": True, "trust_remote_code": False}
    kinds = getattr(transformers, model), getattr(transformers, preparation)
    try:
        prepare = kinds[1].from_pretrained(folder, **options, **where)
        # In float32: not all classifiers convert their inputs to the precision of their weights.
        network, report = kinds[0].from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **where
        )
    except Exception as error:  # of many types, which mean the same to the caller
        raise ValueError(f"{flag} {folder}: not {what} of transformers ({in_one_line(error, 200)})") from None
    if report["missing_keys"]:
        raise ValueError(f"{flag} {folder}: its weights lack {sorted(report['missing_keys'])[0]}")
    return network.requires_grad_(False).eval(), prepare
