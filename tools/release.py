"""Build the sdist and the wheel into dist/ and check them; nothing is uploaded.

    make dist         # python tools/release.py: what CI runs
    make release      # python tools/release.py --final: also checks the version, the tag and the tree

Each check that fails is one line, and the exit status is 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from datetime import date
from email.parser import Parser
from pathlib import Path

import yaml

import genmodels

ROOT = Path(__file__).parent.parent
LARGEST = 100_000_000
"""Size of a file that PyPI accepts, in bytes."""
RELATIVE = re.compile(r"\]\((?!https?:|#)([^)]*)\)")
"""A Markdown link or picture whose address is relative."""
ENTRY = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>.+)$", re.MULTILINE)
"""Heading of a version in CHANGELOG.md."""


def git(*arguments: str) -> list[str]:
    """Return the lines that a command of git prints about this repository."""
    command = ["git", "-c", "core.quotePath=false", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def version_problems(version: str, changelog: str, citation: str) -> list[str]:
    """Compare the version with the newest entry of CHANGELOG.md and with CITATION.cff, given as texts."""
    entry = ENTRY.search(changelog)
    if entry is None or entry["version"] != version:
        return [f"CHANGELOG.md begins with {entry and entry['version']}, and the version is {version}"]
    try:
        date.fromisoformat(entry["date"])
    except ValueError:
        return [f"CHANGELOG.md: {version} has the date {entry['date']!r}: write the day of the release, as 2026-11-30"]
    cited = yaml.safe_load(citation)
    expected, found = (version, entry["date"]), (str(cited["version"]), str(cited["date-released"]))
    if expected == found:
        return []
    return [f"CITATION.cff has {' of '.join(found)}, and CHANGELOG.md {' of '.join(expected)}"]


def tree_problems(version: str) -> list[str]:
    """Look for uncommitted changes, and for a tag of this version at another commit."""
    changed = git("status", "--porcelain")
    problems = [f"uncommitted: {', '.join(line[3:] for line in changed[:5])}: commit or remove it"] if changed else []
    if git("tag", "--list", f"v{version}") and git("rev-parse", f"v{version}^{{commit}}") != git("rev-parse", "HEAD"):
        problems.append(f"the tag v{version} exists at another commit: raise the version")
    return problems


def wheel_problems(wheel: Path, tracked: set[str]) -> list[str]:
    """Compare a wheel with the files of the repository, and check its metadata.

    Args:
        wheel: the file.
        tracked: paths of all files of the repository.
    """
    inside = {path for path in tracked if path.startswith("genmodels/")}
    inside |= {f"genmodels/{path}" for path in tracked if path.startswith(("recipes/", "configs/"))}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = {name for name in names if ".dist-info/" in name}
        texts = {Path(name).name: archive.read(name).decode() for name in about}
    metadata = Parser().parsestr(texts["METADATA"])
    problems = difference(wheel, names - about, inside)
    if "LICENSE" not in texts:
        problems.append(f"{wheel.name} has no LICENSE")
    if relative := RELATIVE.findall(str(metadata.get_payload())):
        problems.append(f"{wheel.name}: the README has relative addresses, which PyPI cannot follow: {relative[:3]}")
    if not metadata.get_all("Project-URL"):
        problems.append(f"{wheel.name} has no project addresses")
    return problems


def sdist_problems(sdist: Path, tracked: set[str]) -> list[str]:
    """Compare an sdist with the files of the repository: it holds them all, and PKG-INFO."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    return difference(sdist, names, tracked | {"PKG-INFO"})


def difference(archive: Path, found: set[str], expected: set[str]) -> list[str]:
    """Describe which files an archive lacks, and which it should not have."""
    missing, surplus = sorted(expected - found), sorted(found - expected)
    problems = [f"{archive.name} lacks {len(missing)} files: {', '.join(missing[:5])}"] if missing else []
    if surplus:
        problems.append(f"{archive.name} has {len(surplus)} files that git does not: {', '.join(surplus[:5])}")
    if archive.stat().st_size > LARGEST:
        problems.append(f"{archive.name} has {archive.stat().st_size:,} bytes; PyPI accepts {LARGEST:,}")
    return problems


def build() -> tuple[Path, Path]:
    """Build both files from the repository, the wheel through the sdist, and return their paths."""
    folder = ROOT / "dist"
    for earlier in folder.glob("genmodels-*"):
        earlier.unlink()
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)], check=True)
    return sdist, wheel


def main(final: bool) -> int:
    """Build and check. With `final`, check first whether this commit may be released."""
    version = genmodels.__version__
    problems = []
    if final:
        texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff")]
        problems = version_problems(version, *texts) + tree_problems(version)
    if not problems:
        tracked = set(git("ls-files"))
        sdist, wheel = build()
        problems = sdist_problems(sdist, tracked) + wheel_problems(wheel, tracked)
        print(*(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e6:.1f} MB" for file in (sdist, wheel)), sep="\n")
    for problem in problems:
        print(f"release: error: {problem}", file=sys.stderr)
    if final and not problems:
        print(
            f"Nothing has been uploaded. To release {version}:\n"
            f"    git tag v{version} && git push origin v{version}\n"
            f"    twine upload dist/*"
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main("--final" in sys.argv[1:]))
