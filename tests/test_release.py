"""What a release consists of: addresses of the README, versions, the checks of built files, and CI."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import tarfile
import tomllib
import zipfile
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import genmodels
from genmodels.abilities import ABILITIES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tool(name: str) -> ModuleType:
    """Import a script of tools/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return tool("release")


def test_the_readme_has_only_absolute_addresses_on_pypi(release: ModuleType) -> None:
    """Its relative ones are those of files, and the build rewrites them as pyproject.toml says."""
    relative = release.RELATIVE.findall(README)
    assert len(relative) > 20
    for address in relative:
        assert (ROOT / address.partition("#")[0]).exists(), address
    text = README
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert release.RELATIVE.findall(text) == []
    source = PROJECT["project"]["urls"]["Homepage"]
    raw = source.replace("github.com", "raw.githubusercontent.com")
    first, *_ = pictures = re.findall(r"!\[[^\]]*\]\((.*?)\)", README)
    assert (ROOT / first).stat().st_size <= 2_000_000
    for picture in pictures:
        assert f"({raw}/v$HFPR_VERSION/{picture})" in text
    assert f"({source}/blob/v$HFPR_VERSION/CONTRIBUTING.md)" in text


def test_the_table_of_families_in_the_readme_is_that_of_the_abilities() -> None:
    """A column is a command of the table of abilities, "likelihood" or "conditions"."""
    header, _, *lines = re.search(r"^\| family \|.*\n(?:\|.*\n)+", README, re.MULTILINE)[0].splitlines()
    columns = [cell.strip(" `") for cell in header.strip("|").split("|")[1:]]
    named = {"likelihood": ("bits_per_dim", "bits_per_token")}
    families = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        families.append(re.search(r"`(\w+)`$", cells[0])[1])
        of = genmodels.family(families[-1])
        for column, cell in zip(columns, cells[1:], strict=True):
            rows = [row for row in ABILITIES if row.command == column or row.name in named.get(column, ())]
            assert rows or column == "conditions"
            can = any(all(getattr(of, part, None) is not None for part in row.methods) for row in rows)
            can |= column == "conditions" and hasattr(of.Config(), "condition")
            assert cell == ("✓" if can else ""), f"{families[-1]}: {column}"
    assert families == [name for name in genmodels.FAMILIES if name != "latent"]


@pytest.mark.parametrize(
    ("changelog", "citation", "message"),
    [
        ("## [0.2.0] - 2026-12-01\n\n## [0.1.0] - 2026-11-30\n", "0.2.0 2026-12-01", None),
        ("## [0.1.0] - 2026-11-30\n", "0.2.0 2026-12-01", "begins with 0.1.0, and the version is 0.2.0"),
        ("nothing\n", "0.2.0 2026-12-01", "begins with None"),
        ("## [0.2.0] - unreleased\n", "0.2.0 2026-12-01", "has the date 'unreleased'"),
        ("## [0.2.0] - 2026-12-01\n", "0.1.0 2026-12-01", "has 0.1.0 of 2026-12-01, and CHANGELOG.md 0.2.0 of 2026-"),
        ("## [0.2.0] - 2026-12-01\n", "0.2.0 2026-11-30", "has 0.2.0 of 2026-11-30, and CHANGELOG.md 0.2.0 of 2026-"),
    ],
)
def test_a_version_is_released_with_its_entry_and_citation(
    release: ModuleType, changelog: str, citation: str, message: str | None
) -> None:
    version, day = citation.split()
    problems = release.version_problems("0.2.0", changelog, f"version: {version}\ndate-released: {day}\n")
    assert problems == [] if message is None else message in problems[0]


def test_the_version_is_cited() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == genmodels.__version__
    assert cited["license"] == PROJECT["project"]["license"]


def test_built_files_hold_what_git_does_and_nothing_else(release: ModuleType, tmp_path: Path) -> None:
    metadata = "Name: genmodels\nProject-URL: Homepage, https://x\n\n[a](https://x) [b](#here) {}\n"
    about = {"LICENSE": "", "METADATA": metadata.format("")}

    def wheel(files: list[str], texts: dict[str, str]) -> list[str]:
        path = tmp_path / "x.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in files:
                archive.writestr(name, "")
            for name, text in texts.items():
                archive.writestr(f"genmodels-1.dist-info/{name}", text)
        return release.wheel_problems(path, {"genmodels/a.py", "recipes/vae.py", "configs/c.yaml", "tests/t.py"})

    whole = ["genmodels/a.py", "genmodels/recipes/vae.py", "genmodels/configs/c.yaml"]
    assert wheel(whole, about) == []
    assert wheel(whole[:2], about) == ["x.whl lacks 1 files: genmodels/configs/c.yaml"]
    assert wheel([*whole, "genmodels/key.pem"], about) == ["x.whl has 1 files that git does not: genmodels/key.pem"]
    assert wheel(whole, {"METADATA": about["METADATA"]}) == ["x.whl has no LICENSE"]
    assert "relative addresses" in wheel(whole, about | {"METADATA": metadata.format("![c](docs/c.png)")})[0]
    assert "no project addresses" in wheel(whole, about | {"METADATA": "Name: genmodels\n\nText"})[0]

    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("genmodels-1/PKG-INFO", "genmodels-1/README.md", "genmodels-1/notes.txt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert release.sdist_problems(path, {"README.md", "docs/a.md"}) == [
        "x.tar.gz lacks 1 files: docs/a.md",
        "x.tar.gz has 1 files that git does not: notes.txt",
    ]


def test_the_first_minutes_go_on_after_an_error_which_is_printed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, python, wheel = tool("first_minutes"), sys.executable, tmp_path / "x.whl"
    wheel.touch()
    programs = {
        "writes": "open('made', 'w')",
        "fails": "print('one\\ntwo'); raise SystemExit(3)",
        "warns": "import warnings; warnings.warn('beware')",
        "lasts": "import pathlib; pathlib.Path('made').unlink()",
    }
    walk = first.Walk(tmp_path)
    steps = {title: partial(walk.run, python, "-c", text) for title, text in programs.items()}
    monkeypatch.setattr(first, "steps", lambda *given: steps)
    assert first.main(wheel, python, tmp_path, 1) == 1
    said = re.sub(r"^ *[\d.]+ s  ", "", capsys.readouterr().out, flags=re.MULTILINE)
    command = f"{python} -c {programs['fails']}"
    assert said.startswith(f"writes\nfails FAILED: {command}\nended with status 3 and said:\none\ntwo\n")
    assert "warns FAILED: " in said and said.endswith("\nlasts\nin total, 2 steps failed\n")
    assert first.main(tmp_path / "none.whl", python, tmp_path, 1) == 2
    assert "one wheel is needed" in capsys.readouterr().err


def test_ci_runs_every_check_on_every_python() -> None:
    """By targets of the Makefile, all those of .ci/run among them."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = workflow["jobs"]["make"]["strategy"]["matrix"]
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert matrix["python"] == classifiers and matrix["target"] == ["test"]
    targets = {"test", *(target for row in matrix["include"] for target in row["target"].split())}
    lines = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    checks = {word for line in lines for word in re.findall(r"(?<!\S)[a-z-]+(?!\S)", line.partition("#")[0])}
    assert checks - {"setup"} == targets
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    called = targets | set(re.findall(r"^make ([a-z-]+)", "\n".join(steps), re.MULTILINE))
    assert called >= {"lint", "test", "test-browser", "notebooks", "docs", "dist"}
    assert called <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
