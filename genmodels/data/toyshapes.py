"""Tools for drawing toy faces: random numbers, smooth shapes, blending, and the scene.

A plane is float32 (n, h, w), a number per face is (n, 1, 1), and a colour is (n, 3, 1, 1), sRGB in
[0, 1]. Planes are only combined by + - * / sqrt, minimum, maximum and floor. These are fast and
correctly rounded, so that the pixels do not depend on how the faces are split into chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]  # float32 by construction; the stubs widen float32 times float
SceneT = TypeVar("SceneT", bound="Scene")

_ZERO, _ONE, _HUGE = np.float32(0), np.float32(1), np.float32(3e38)


def splitmix(state: NDArray[np.uint64], part: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Mix another integer into a 64-bit hash (splitmix64, OOPSLA 2014). Shapes broadcast."""
    state = state + part + np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(state: NDArray[np.uint64], first: int, count: int) -> Plane:
    """Uniform numbers first ... first + count - 1 of each stream (n,): float32 (count, n)."""
    bits = splitmix(state, np.arange(first, first + count, dtype=np.uint64)[:, None])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


@dataclass(frozen=True)
class Traits:
    """Attributes of n faces, and random numbers for everything else.

    Attributes:
        names: names of the K flags.
        flags: float32 (K, n, 1, 1): 1 if the face has the attribute, else 0.
        tone: float32 (n,) in [0, 1): skin from light to dark.
        numbers: float32 (LAYERS * NUMBERS, n, 1, 1) in [0, 1): random numbers of each layer of the
            picture.
    """

    LAYERS = 20
    NUMBERS = 24  # at most, per layer

    names: tuple[str, ...]
    flags: Plane
    tone: Plane
    numbers: Plane

    def __getitem__(self, who: slice | NDArray[np.intp]) -> Traits:
        return Traits(self.names, self.flags[:, who], self.tone[who], self.numbers[:, who])

    def has(self, name: str) -> Plane:
        """1 if the face has the attribute, else 0: (n, 1, 1)."""
        return self.flags[self.names.index(name)]


class Dice:
    """Random numbers of one layer of the picture, in the order of the calls."""

    def __init__(self, traits: Traits, layer: int):
        self._numbers = iter(traits.numbers[layer * Traits.NUMBERS : (layer + 1) * Traits.NUMBERS])

    def number(self, low: float | Plane, high: float | Plane) -> Plane:
        """Uniform in [low, high): (n, 1, 1)."""
        return next(self._numbers) * (high - low) + low

    def colour(self, low: float, high: float, tint: float) -> Plane:
        """A grey in [low, high) with each channel up to `tint` off: (n, 3, 1, 1)."""
        grey = self.number(low, high)
        channels = np.stack([grey + self.number(-tint, tint) for _ in range(3)], axis=1)
        return unit(channels)

    def pick(self, stops: Sequence[tuple[float, ...]], share: float | Plane = 1.0) -> Plane:
        """A colour from the first `share` of a ramp: (n, 3, 1, 1)."""
        return ramp(self.number(0.0, share)[:, 0, 0], stops)


def rgb(*channels: float) -> Plane:
    """A fixed colour, (1, 3, 1, 1)."""
    return np.array(channels, np.float32).reshape(1, 3, 1, 1)


def ramp(value: Plane, stops: Sequence[tuple[float, ...]]) -> Plane:
    """Colours (n, 3, 1, 1) at `value` (n,) in [0, 1], linear between equally spaced stops."""
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(value, places, levels) for levels in zip(*stops, strict=True)]
    return np.stack(channels, axis=1).astype(np.float32)[:, :, None, None]


def choose(flag: Plane, yes: Plane | float, no: Plane | float) -> Plane:
    """`yes` for the faces whose flag is 1, `no` for those where it is 0."""
    return flag * yes + (1 - flag) * no


def unit(plane: Plane) -> Plane:
    """Clip to [0, 1], in place."""
    return plane.clip(_ZERO, _ONE, out=plane)


def positive(plane: Plane) -> Plane:
    """The larger of plane and 0, in place. (clip is twice as fast as maximum.)"""
    return plane.clip(_ZERO, _HUGE, out=plane)


def side_of(plane: Plane) -> Plane:
    """-1 where the plane is negative, else 1."""
    side = (plane >= 0).astype(np.float32)
    side *= np.float32(2)
    side -= _ONE
    return side


def edge(distance: Plane, width: Plane | np.float32) -> Plane:
    """Coverage in [0, 1] of the half-plane distance > 0, with an edge of `width`."""
    cover = distance * (1 / width)
    cover += np.float32(0.5)
    return unit(cover)


def stroke(distance: Plane, half: Plane | float, pixel: np.float32) -> Plane:
    """Coverage of a line of half-width `half` around distance 0. Thin lines fade."""
    half = np.asarray(half, np.float32)
    cover = edge(half - np.abs(distance), pixel)
    cover *= np.minimum(np.float32(1), 2 * half / pixel + np.float32(0.1))
    return cover


def disc(x: Plane, y: Plane, radius: Plane | float, pixel: np.float32) -> Plane:
    """Coverage of a disc around the origin."""
    return edge(radius - np.sqrt(x * x + y * y), pixel)


def bump(x: Plane, y: Plane) -> Plane:
    """A smooth bump of height 1 on the unit disc, 0 outside: (1 - r^2)^2."""
    rest = x * x
    rest += y * y
    positive(np.subtract(_ONE, rest, out=rest))
    rest *= rest
    return rest


def wave(cycles: Plane) -> Plane:
    """Very nearly sin(2 pi cycles): two parabolas per period."""
    phase = cycles - np.floor(cycles)
    phase -= np.float32(0.5)
    swing = np.abs(phase)
    swing *= np.float32(16)
    swing -= np.float32(8)
    phase *= swing
    return phase


def blend(canvas: Plane, cover: Plane, colour: Plane) -> None:
    """Blend `colour` into the canvas (n, 3, h, w) with coverage (n, h, w), in place."""
    delta = colour - canvas
    delta *= cover[:, None]
    canvas += delta


@dataclass
class Scene:
    """Canvas of some faces, or a window of it, and the parameters that every layer needs.

    Head coordinates (x, y) are upright and have about the scale of the image. The origin lies
    between the eyes, on the axis of the head.
    """

    traits: Traits
    size: int  # of the whole image, in pixels
    corner: tuple[int, int]  # row and column of this window's first pixel
    canvas: Plane  # (n, 3, h, w)
    x: Plane
    y: Plane
    light_x: Plane  # towards the light, unit length; z is towards the viewer
    light_y: Plane
    light_z: Plane
    ambient: Plane  # fraction of ambient light
    yaw: Plane  # from -1 to 1: the face turned to one side
    pitch: Plane
    skin: Plane  # (n, 3, 1, 1)
    hair: Plane  # (n, 3, 1, 1)
    width: Plane  # half the head's width
    top: Plane  # from the eyes to the crown
    chin: Plane  # from the eyes to the chin

    @property
    def pixel(self) -> np.float32:
        """Width of a pixel, which is also the width of an anti-aliased edge."""
        return np.float32(2 / self.size)

    def window(
        self: SceneT, upper: float, lower: float, side: float = 1.0, who: NDArray[np.intp] | None = None
    ) -> tuple[SceneT, tuple[slice, slice]]:
        """Copy a window of the faces `who`, and return it with its rows and columns here."""
        spans = []
        for low, high, start, length in zip(
            (upper, -side), (lower, side), self.corner, self.canvas.shape[2:], strict=True
        ):
            first = min(max(int((low + 1) / 2 * self.size) - start, 0), length - 1)
            last = min(max(int((high + 1) / 2 * self.size) + 1 - start, first + 1), length)
            spans.append(slice(first, last))
        rows, columns = spans

        def cut(plane: Plane) -> Plane:  # contiguous, as numpy is twice as fast on whole arrays
            if plane.shape[-1] > 1:
                part = plane[..., rows, columns]
                return part.copy() if who is None else part[who]
            return plane if who is None else plane[who]

        planes = {field.name: getattr(self, field.name) for field in fields(self)}
        planes = {name: cut(plane) for name, plane in planes.items() if isinstance(plane, np.ndarray)}
        corner = (self.corner[0] + rows.start, self.corner[1] + columns.start)
        traits = self.traits if who is None else self.traits[who]
        return replace(self, traits=traits, corner=corner, **planes), (rows, columns)

    def paint(
        self: SceneT,
        layer: Callable[[SceneT], None],
        upper: float,
        lower: float,
        side: float = 1.0,
        only: Plane | None = None,
    ) -> None:
        """Draw a layer within a window, on the faces flagged in `only` (n, 1, 1) or on all."""
        who = None if only is None else np.flatnonzero(only > 0.5)
        if who is None or len(who):
            window, (rows, columns) = self.window(upper, lower, side, who)
            layer(window)
            self.canvas[slice(None) if who is None else who, :, rows, columns] = window.canvas
