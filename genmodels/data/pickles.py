"""Reading the pickle files of CIFAR-10 and CIFAR-100 without executing what they say.

A pickle is a program: it names functions, and unpickling calls them. The checksums by which
torchvision recognises its own files say nothing about files that were made or placed by hand. So
the only functions that a file may name here are those that rebuild an array of numpy, and each is
replaced by a class of this module that keeps what it is given. No code of numpy sees it unchecked.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.reading import in_one_line, read_bytes

LARGEST_PICKLE = 1 << 28
"""Largest pickle file that is read, in bytes. Those of CIFAR-100 have 155 MB."""


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of numbers, texts, lists and arrays of bytes, as those of CIFAR are.

    Returns:
        The dict; keys and texts that Python 2 wrote as bytes are str. Arrays are uint8.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged, or holds or calls anything else; names the file.
    """
    try:
        content = _Unpickler(io.BytesIO(read_bytes(path, LARGEST_PICKLE)), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dict")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in content.items()}
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged pickle raises errors of every kind
        reason = in_one_line(error, 120) or "it ends too early"
        raise ValueError(f"{path} is not a file of CIFAR ({reason}): it is damaged; download it again") from None


class _Array:
    """What a pickle says about an array, until it has been checked."""

    def __init__(self, *arguments: Any):
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def array(self) -> np.ndarray:
        """Return the array, uint8.

        Raises:
            ValueError: if it has another type, or its shape does not fit its bytes.
        """
        _, shape, kind, by_columns, content = self._state
        if isinstance(content, str):  # Python 2 wrote bytes, which are read as Latin-1
            content = content.encode("latin1")
        if not isinstance(kind, _Kind) or kind.code != "u1" or not isinstance(content, (bytes, bytearray)):
            raise ValueError("an array in it does not hold bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Kind:
    """The type of an array, by its code, such as "u1"."""

    def __init__(self, code: Any, *arguments: Any):
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment, which bytes do not have."""


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Return an array that was written with protocol 5 of pickle."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return the bytes that Python 3 wrote as text in Latin-1."""
    return text.encode("latin1")


class _Function:
    """A function that a pickle may call. Unpickling could change the defaults of a plain one."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


_KNOWN = {
    "numpy.core.multiarray _reconstruct": _Array,
    "numpy._core.multiarray _reconstruct": _Array,
    "numpy._core.numeric _frombuffer": _Function(_from_buffer),
    "numpy ndarray": _Array,
    "numpy dtype": _Kind,
    "_codecs encode": _Function(_encode),
}
"""All that a pickle may name, and what takes its place."""


class _Unpickler(pickle._Unpickler):
    """Unpickler in Python: that in C reserves as much memory as a damaged file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what takes the place of a class or function.

        Raises:
            pickle.UnpicklingError: if files of CIFAR do not name it.
        """
        if f"{module} {name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which is not executed")
        return _KNOWN[f"{module} {name}"]


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
