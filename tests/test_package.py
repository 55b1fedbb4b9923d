"""The public names of the package: imported when used, known to dir() and to type checkers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import genmodels

ROOT = Path(genmodels.__file__).parent.parent
FUNCTIONS = {"FAMILIES", "families", "family", "load"}


@pytest.mark.parametrize("name", genmodels.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(genmodels, name) is not None
    assert name in dir(genmodels)


def test_the_three_lists_of_public_names_agree() -> None:
    """__all__ is read by people, EXPORTS by __getattr__, and the imports by type checkers."""
    tree = ast.parse(Path(genmodels.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        (alias.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == set(genmodels.EXPORTS.items())
    assert set(genmodels.__all__) == set(genmodels.EXPORTS) | FUNCTIONS


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, genmodels; dir(genmodels); assert 'torch' not in sys.modules"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'VEA'"):
        _ = genmodels.VEA


def test_equal_images_are_promised_up_to_rounding() -> None:
    """The last bits of a network's output depend on the size of the batch."""
    promises = []
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "genmodels").rglob("*.py")):
        for paragraph in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
            words = " ".join(paragraph.split())
            if re.search("[Ii]mage i of a seed (is (always )?the same|does not)", words):
                promises.append(file.name)
                assert "up to rounding" in words, f"{file.name}: {words}"
    assert {"README.md", "commands.md", "autoregressive.md", "base.py", "sampling.py"} <= set(promises)
