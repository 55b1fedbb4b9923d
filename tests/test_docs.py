"""The documentation: what the site contains, and links between pages. `make docs` checks anchors and the API."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import genmodels

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def entries(nav: Any) -> list[str]:
    """Return the pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in entries(part)]


def test_every_page_and_notebook_is_in_the_navigation_once() -> None:
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    notebooks = [f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.py")]
    made = ["index.md", "contributing.md", "changelog.md", "security.md", "gallery.md"]
    assert sorted(entries(SITE["nav"])) == sorted([*pages, *notebooks, *made])


def test_every_public_name_is_in_the_api_reference() -> None:
    listed = re.findall(r"^::: genmodels\.(\w+)$", "".join(p.read_text() for p in DOCS.glob("api/*.md")), re.MULTILINE)
    assert set(listed) >= set(genmodels.__all__)
    assert len(listed) == len(set(listed))


def test_the_site_links_to_the_repository_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SITE["extra"]["social"][0]["link"] in project["urls"].values()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", text) if not link.startswith(("http", "mailto:"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_make_docs_fetches_katex_again_where_build_was_removed(tmp_path: Path) -> None:
    """As after `rm -rf build`, which leaves the stamps of .venv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stamps = [tmp_path / ".venv" / name for name in (".created", ".installed-docs")]
    stamps[0].parent.mkdir()
    for stamp in stamps:
        stamp.touch()

    def commands() -> str:
        run = subprocess.run(["make", "-n", "docs"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return run.stdout

    before = commands()
    assert "npm install" in before and "mkdocs build" in before and "pip install" not in before
    version = re.findall(r"katex@(\S+)", before)[0]
    (tmp_path / "build/katex").mkdir(parents=True)
    (tmp_path / f"build/katex/.installed-{version}").touch()
    assert "npm install" not in commands() and "mkdocs build" in commands()
