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

# What each module or folder directly under genmodels/ may import, besides itself. Only __init__.py
# (lazily) and the commands may import everything, and nothing else imports those.
CORE = {"types", "base"}
# Small modules that import only torch or the standard library. Every module may import them.
SHARED = {"distributed", "hashing", "inpainting", "pixels", "precision", "token_sampling"}
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    **{name: set() for name in SHARED},
    "usage": set(),
    "base": {"types"},
    "nn": {"types"},
    "codec": CORE | {"nn"},
    "data": {"types"},
    "sampling": CORE,
    "directions": CORE | {"sampling"},
    "evaluation": CORE | {"nn", "data", "sampling"},
    "training": CORE | {"nn", "data", "sampling", "evaluation", "usage"},
    "pretrained": CORE | {"nn"},
    # Any family can be part of it, so it looks up classes by name in the package itself.
    "latent": CORE | {"nn", "pretrained", "__init__"},
    "exchange": CORE | {"nn", "diffusion", "dit", "latent", "pretrained"},
}
FAMILY = CORE | {"nn", "codec"}
"""What the module of a family may import. Families are the modules named in genmodels.FAMILIES."""
# A model for autoguidance may be of any family, and is loaded through the package itself.
ALLOWED["diffusion"] = FAMILY | {"__init__"}
ALLOWED["dit"] = FAMILY | {"diffusion"}
UNRESTRICTED = {"__init__", "__main__", "cli", "demo"}
NEVER_A_FAMILY = ["training", "sampling", "evaluation"]


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def family_layers() -> set[str]:
    return {target.partition(":")[0].split(".")[1] for target in genmodels.FAMILIES.values()}


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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_as_drawn(path: Path) -> None:
    layer = layer_of(path)
    if layer in UNRESTRICTED:
        return
    allowed = ALLOWED.get(layer, FAMILY if layer in family_layers() else None)
    assert allowed is not None, f"{layer} is a new module: add what it may import to this file"
    package = ("genmodels", *path.relative_to(PACKAGE).parts[:-1])
    # Every module may use __version__ of the package itself.
    source = re.sub(r"from genmodels import __version__\n", "\n", path.read_text())
    wrong = imported_layers(source, package) - allowed - SHARED - {layer}
    assert not wrong, f"{layer} may import {sorted(allowed) or 'nothing of the package'}, not {sorted(wrong)}"


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


@pytest.mark.parametrize("layer", NEVER_A_FAMILY)
def test_shared_rooms_name_no_family(layer: str) -> None:
    classes = {target.partition(":")[2].lower() for target in genmodels.FAMILIES.values()}
    files = [path for path in MODULES if layer_of(path) == layer]
    assert files
    for path in files:
        named = code_words(ast.parse(path.read_text())) & (set(genmodels.FAMILIES) | classes)
        assert not named, f"{path.relative_to(ROOT)} names {sorted(named)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_asks_hasattr(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(func, ast.Name) and func.id == "hasattr" for func in calls)


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

    # Best CPU time of five, so that the test does not fail on a busy machine.
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], env=env, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5
