"""Layers of the package: imports between its modules, and the time of `import genmodels`."""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import genmodels

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genmodels"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if PACKAGE / "recipes" not in p.parents)
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

# Modules and folders directly under genmodels/, from the lowest layer to the highest. A module
# imports from layers below its own, and never from its own layer or above.
LAYERS: tuple[set[str], ...] = (
    {"reading", "writing"},
    {"image_files", "array_files", "saving", "shipped", "watermark"},
    {"conditions"},
    {"types", "abilities", "weights", "hub", "hashing", "pictures", "modes", "distributed"},
    {"card", "inpainting", "token_sampling", "usage", "stopping", "candidates", "text", "prompt_filter"},
    {"nn", "safety", "image_filter"},
    {"base"},
    {"prior", "autoencoder", "adversarial", "pretrained", "sampling", "data", "pruning"},
    {"codecs", "directions", "text_conditions", "chat"},
    {"variations"},
    {"ae", "vae", "vqvae", "kl", "gan_config", "autoregressive", "diffusion", "clip", "lm"},
    {"answering"},
    {"gan", "dit", "tiny", "llava", "multimodal"},
    {"latent_config"},
    {"latent", "llava_parts"},
    {"exchange", "evaluation"},
    {"training"},
    {"scaling", "alignment"},
    {"demo", "app"},
    {"cli"},
)
LOADS_BY_NAME = {
    *("codecs", "latent_config", "latent", "llava_parts", "diffusion", "evaluation", "exchange", "scaling", "alignment")
}
"""Modules that load a model of any family (codec, prior, guide, extractor, CLIP) through the package itself."""
UNRESTRICTED = {"__init__", "__main__"}
SHARED = [
    "training",
    "sampling",
    "evaluation",
    "scaling",
    "alignment",
    "cli",
    "app",
    "codecs",
    "data",
    "directions",
    "variations",
]
"""Modules that serve every family alike."""
LONGEST = 330


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_layers(source: str, package: tuple[str, ...]) -> set[str]:
    """Return the layers that a file imports anywhere, also under `if TYPE_CHECKING:`.

    Args:
        source: text of the file.
        package: package of the file, such as ("genmodels", "data").

    Returns:
        Names of layers. "__init__" is the package itself.
    """
    layers = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in targets:
            if parts[0] == "genmodels":
                name = parts[1] if len(parts) > 1 else "__init__"
                is_layer = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
                layers.add(name if is_layer else "__init__")
    return layers


def height(layer: str) -> int:
    return next((i for i, names in enumerate(LAYERS) if layer in names), -1)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    if layer in UNRESTRICTED:
        return
    own = height(layer)
    assert own >= 0, f"{layer} is a new module: add it to a layer in this file"
    package = ("genmodels", *path.relative_to(PACKAGE).parts[:-1])
    # Every module may use __version__ of the package itself.
    source = re.sub(r"from genmodels import __version__\n", "\n", path.read_text())
    imported = imported_layers(source, package) - {layer}
    if layer in LOADS_BY_NAME or layer in ("cli", "demo"):
        imported -= {"__init__"}
    wrong = {name for name in imported if not 0 <= height(name) < own}
    assert not wrong, f"{layer} is in layer {own} and imports {sorted(wrong)}, which are not below it"


def test_every_module_is_in_one_layer() -> None:
    names = [name for layer in LAYERS for name in layer]
    assert sorted(names) == sorted({layer_of(path) for path in MODULES} - UNRESTRICTED)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_fits_in_one_reading(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("layer", SHARED)
def test_shared_modules_do_not_branch_on_the_type_of_a_model(layer: str) -> None:
    classes = {target.partition(":")[2] for target in genmodels.FAMILIES.values()}
    classes |= {"Model", "Generator", "Prior", "Autoencoder", "Diffusion", "PretrainedCodec"}
    for path in (path for path in MODULES if layer_of(path) == layer):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                assert not names & classes, f"{path.relative_to(ROOT)}:{node.lineno} asks for the type of a model"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import genmodels.vae", {"vae"}),
        ("from genmodels import vae as v, load", {"vae", "__init__"}),
        ("from genmodels.nn.conv import Block", {"nn"}),
        ("def f():\n    from ..training import fit", {"training"}),
        ("from .packed import Packed", {"data"}),
        ("import torch, numpy.random", set()),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: self.name in {"vae.py"})
    monkeypatch.setattr(Path, "is_dir", lambda self: self.name in {"nn", "training", "data"})
    assert imported_layers(source, ("genmodels", "data")) == expected


def code_words(tree: ast.Module) -> set[str]:
    """Split every identifier and string of a file, except docstrings, into lower-case words."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            texts.append(node.value)
        elif isinstance(node, ast.alias):
            texts.append(node.name)
        elif isinstance(node, ast.Name):
            texts.append(node.id)
        elif isinstance(node, ast.Attribute):
            texts.append(node.attr)
    return {word.lower() for text in texts for word in re.findall(r"[A-Za-z0-9]+", text)}


@pytest.mark.parametrize("layer", ["training", "sampling", "evaluation"])
def test_shared_modules_name_no_family(layer: str) -> None:
    classes = {target.partition(":")[2].lower() for target in genmodels.FAMILIES.values()}
    # Training clips gradients, the published CLIP is one of the extractors of the evaluation, and
    # "tiny" is a word of its prompts.
    classes -= {"clip", "tiny"}
    families = set(genmodels.FAMILIES) - {"clip", "tiny"}
    files = [path for path in MODULES if layer_of(path) == layer]
    assert files
    for path in files:
        named = code_words(ast.parse(path.read_text())) & (families | classes)
        assert not named, f"{path.relative_to(ROOT)} names {sorted(named)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_asks_hasattr(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(func, ast.Name) and func.id == "hasattr" for func in calls)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_image_files_opens_images(path: Path) -> None:
    uses = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    opening = {use for use in uses if use.endswith(("Image.open", ".exif_transpose", ".imread"))}
    assert not opening or layer_of(path) == "image_files", f"{path.relative_to(ROOT)} uses {sorted(opening)}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_every_family_has_a_recipe() -> None:
    # A latent model is trained with the recipe of its prior.
    assert {path.stem for path in RECIPES} >= set(genmodels.FAMILIES) - {"latent"}


@pytest.mark.parametrize(
    "command",
    [["-c", "import genmodels"], ["-m", "genmodels", "--help"]],
    ids=["import", "help"],
)
def test_starts_at_once_and_without_torch(command: list[str]) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    imports = subprocess.run(
        [sys.executable, "-X", "importtime", *command], env=env, capture_output=True, text=True, check=True
    ).stderr
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in imports.splitlines()}
    assert "genmodels" in loaded
    assert not loaded & {"torch", "torchvision", "accelerate", "matplotlib", "sklearn"}

    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], env=env, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Half a second of CPU time, where NumPy takes a tenth: slow and busy machines take longer for both. One of five is
    # quick enough.
    assert any(seconds(*command) < max(0.5, 5 * seconds("-c", "import numpy")) for _ in range(5))
