"""What a command may not do: touch a file outside, start a program, connect to a network."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "pty.spawn")
WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "shutil.rmtree", "os.chmod")


def outside(folder: Path, work: Path) -> dict[str, Any]:
    """Return what is beside `work`: names, contents, times."""
    found = {}
    for path in _paths(folder, work):
        status = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (digest, status.st_mode, status.st_mtime_ns if path.is_file() else 0, status.st_ino)
    return found


def _paths(folder: Path, work: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path == work or path.name in ("stdout.txt", "stderr.txt", "command.txt"):
            continue
        yield path
        if path.is_dir():
            yield from sorted(path.rglob("*"))


class Watch:
    """Watches what Python is asked to open, change and start while a command runs."""

    def __init__(self) -> None:
        self.inside = ""
        self.wrong: list[str] = []
        self.start = 0.0

    def begin(self, work: Path) -> None:
        self.inside, self.wrong, self.start = os.path.realpath(work), [], time.monotonic()

    def end(self) -> None:
        self.inside = ""

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.inside:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, (str, bytes)):
                self._check(event, path, follow=not (flags or 0) & os.O_NOFOLLOW)
        elif event in WRITES:
            for path in arguments[:2]:
                if isinstance(path, (str, bytes)):
                    self._check(event, path, follow=event in ("os.truncate", "os.chmod"))
        elif event in PROGRAMS:
            self.wrong.append(f"started a program: {event} {str(arguments[:2])[:200]}")
        elif event == "socket.connect":
            self.wrong.append(f"connected to {arguments[1]}")

    def _check(self, event: str, path: str | bytes, follow: bool = True) -> None:
        inside, self.inside = self.inside, ""  # what follows is not watched
        text = os.path.abspath(os.fsdecode(path))
        real = (
            os.path.realpath(text)
            if follow
            else os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        )
        if not (real == inside or real.startswith((inside + os.sep, "/dev/null"))):
            self.wrong.append(f"{event} of {real}")
        self.inside = inside
