"""Draws toy faces, from the background to the hat. toyfeatures.py draws the face itself.

In head coordinates the eyes lie near (+-0.22, 0), the chin near (0, 0.72) and the crown near
(0, -0.66). As in CelebA, the face fills most of the image.
"""

from __future__ import annotations

import numpy as np

from genmodels.data import toyfeatures
from genmodels.data.toyshapes import (
    Dice,
    Plane,
    Scene,
    Traits,
    blend,
    bump,
    choose,
    disc,
    edge,
    positive,
    ramp,
    rgb,
    side_of,
    stroke,
    unit,
    wave,
)

SKIN = ((1, 0.9, 0.86), (0.96, 0.8, 0.7), (0.87, 0.67, 0.5), (0.72, 0.5, 0.37), (0.5, 0.33, 0.24), (0.36, 0.23, 0.17))
HAIR = {
    "Black_Hair": rgb(0.07, 0.06, 0.06),
    "Brown_Hair": rgb(0.34, 0.21, 0.13),
    "Blond_Hair": rgb(0.86, 0.7, 0.44),
    "Gray_Hair": rgb(0.72, 0.72, 0.74),
}
OTHER_HAIR = ((0.2, 0.13, 0.1), (0.5, 0.22, 0.1), (0.55, 0.4, 0.25))
METAL = ((0.95, 0.78, 0.35), (0.98, 0.9, 0.65), (0.92, 0.94, 0.97))


def paint(traits: Traits, size: int, out: np.ndarray) -> None:
    """Draw the faces of `traits` into `out`, uint8 (n, size, size, 3)."""
    scene = _scene(traits, size)
    mass, front, colour = _hair(scene)
    _background(scene)
    blend(scene.canvas, mass, scene.hair * np.float32(0.55))
    scene.paint(_body, 0.2, 1.0)
    scene.paint(_tie, 0.55, 1.0, 0.5, only=traits.has("Wearing_Necktie"))
    scene.paint(_ears, -0.2, 0.45, 0.75)
    scene.paint(toyfeatures.face, -0.84, 0.98, 0.72)
    mass *= front
    blend(scene.canvas, mass, colour)
    scene.paint(_hat, -1.0, 0.1, only=traits.has("Wearing_Hat"))
    scene.paint(_earrings, 0.1, 0.75, only=traits.has("Wearing_Earrings"))
    scene.paint(toyfeatures.glasses, -0.4, 0.5, 0.8, only=traits.has("Eyeglasses"))
    _develop(scene, out)


def _scene(traits: Traits, size: int) -> Scene:
    n, dice = len(traits.tone), Dice(traits, 0)
    axis = (np.arange(size, dtype=np.float32) * 2 + 1) / np.float32(size) - 1
    male, chubby, oval = traits.has("Male"), traits.has("Chubby"), traits.has("Oval_Face")
    yaw, pitch = dice.number(-1, 1), dice.number(-1, 1)
    yaw = yaw * np.abs(yaw)  # mostly frontal
    sine = dice.number(-0.13, 0.13)
    zoom = 1 / dice.number(1.02, 1.14)
    sine, cosine = sine * zoom, np.sqrt(1 - sine * sine) * zoom
    across, down = axis - dice.number(-0.02, 0.02), axis[:, None] - dice.number(0.0, 0.06)  # (n, 1, W), (n, H, 1)
    light_x, light_y = dice.number(-0.75, 0.75), dice.number(-0.65, 0.05)
    light_z = np.sqrt(1 - np.minimum(light_x**2 + light_y**2, np.float32(0.85)))
    length = np.sqrt(light_x**2 + light_y**2 + light_z**2)
    colours = [traits.has(name)[:, None] * colour for name, colour in HAIR.items()]
    named = sum(traits.has(name)[:, None] for name in HAIR)
    hair = sum(colours) + (1 - named) * dice.pick(OTHER_HAIR)
    warmth = rgb(1, 0, -1) * dice.number(-0.03, 0.03)[:, None]
    return Scene(
        traits=traits,
        size=size,
        corner=(0, 0),
        canvas=np.empty((n, 3, size, size), np.float32),
        x=cosine * across + (sine * down + np.float32(0.11) * yaw),
        y=cosine * down - sine * across,
        light_x=light_x / length,
        light_y=light_y / length,
        light_z=light_z / length,
        ambient=dice.number(0.3, 0.6),
        yaw=yaw,
        pitch=pitch,
        skin=ramp(traits.tone, SKIN) * (1 + warmth),
        hair=np.asarray(hair, np.float32) * dice.number(0.82, 1.15)[:, None] + dice.colour(0.0, 0.05, 0.015),
        width=dice.number(0.405, 0.45) + 0.065 * chubby - 0.035 * oval + 0.02 * male,
        top=dice.number(0.6, 0.67),
        chin=dice.number(0.67, 0.72) + 0.03 * male + 0.06 * oval - 0.02 * chubby,
    )


def _background(s: Scene) -> None:
    """A gradient between two colours, with a soft light out of focus."""
    dice = Dice(s.traits, 1)
    first, second, third = dice.colour(0.05, 0.95, 0.16), dice.colour(0.05, 0.95, 0.16), dice.colour(0.1, 1.0, 0.25)
    slope = s.x * dice.number(-0.6, 0.6)
    slope += s.y * dice.number(-0.5, 0.5)
    slope += np.float32(0.5)
    np.multiply(unit(slope)[:, None], second - first, out=s.canvas)
    s.canvas += first
    radius = 1 / dice.number(0.3, 0.9)
    x, y = (s.x - dice.number(-1.0, 1.0)) * radius, (s.y - dice.number(-1.0, 0.6)) * radius
    glow = bump(x, y) * dice.number(-0.3, 0.8)
    blend(s.canvas, unit(glow), third)


def _hair(s: Scene) -> tuple[Plane, Plane, Plane]:
    """Coverage of all hair, the fraction in front of the face, and its colour (n, 3, H, W)."""
    f, dice = s.traits, Dice(s.traits, 2)
    male, wavy, bangs, hat = f.has("Male"), f.has("Wavy_Hair"), f.has("Bangs"), f.has("Wearing_Hat")
    receding, straight = f.has("Receding_Hairline"), f.has("Straight_Hair")
    curl = choose(wavy, dice.number(0.024, 0.036), dice.number(0.009, 0.015)) * (1 - straight)
    ax = np.abs(s.x)
    ripple = wave(s.y * dice.number(2.2, 3.4) + (ax * dice.number(0.5, 1.5) + dice.number(0, 1))) * curl
    ax += ripple
    volume = choose(male, dice.number(0.0, 0.07), dice.number(0.05, 0.15)) + 0.03 * wavy * (1 - hat)
    volume = volume * (1 - 0.45 * straight)
    long = choose((dice.number(0, 1) > 0.25).astype(np.float32), 1.5, dice.number(0.1, 0.75))
    reach = choose(male, dice.number(-0.12, 0.2), long)
    half, skull = s.width + volume + 0.015, s.top + volume * 0.8 * (1 - hat) + 0.03
    beneath = positive(s.y.copy())
    ox, oy = ax / (half * (1 + beneath * choose(male, -0.25, dice.number(-0.12, 0.3)))), (s.y - beneath) / skull
    ox *= ox
    oy *= oy
    radius = np.sqrt(ox + oy - 0.3 * (ox * oy))
    soft = s.pixel + np.float32(0.02)
    mass = edge((1 - radius) * half, soft)
    mass *= edge(reach + 2 * ripple - s.y, soft + 0.05 + 0.08 * male) * (1 - f.has("Bald"))
    # The opening for the face: squarish, down from the hairline, and straight below the eyes.
    hairline = choose(bangs, dice.number(-0.2, -0.13), dice.number(-0.48, -0.39)) - receding * dice.number(0.1, 0.16)
    parting = dice.number(-0.35, 0.35) * (1 - bangs) * (1 - 0.5 * male)
    opening = s.width * choose(male, dice.number(0.93, 1.02), dice.number(0.78, 0.98)) + receding * 0.03
    ix = (s.x - (0.1 * s.yaw + parting * 0.25)) / opening
    iy = positive((0.15 - s.y - (parting * 0.3) * s.x) / (0.15 - hairline))
    ix *= ix
    iy *= iy
    square = choose(bangs, 0.75, dice.number(0.0, 0.6))
    inside = np.sqrt(ix + iy - square * (unit(ix.copy()) * unit(iy.copy()))) - 1
    strands = wave(s.x * dice.number(4, 7) + (s.y * dice.number(-0.7, 0.7) + dice.number(0, 1)))
    front = edge(inside * np.float32(0.35) + (0.004 + bangs * 0.014) * strands, soft)
    return mass, front, _hair_colour(s, dice, ripple, radius, strands)


def _hair_colour(s: Scene, dice: Dice, ripple: Plane, radius: Plane, strands: Plane) -> Plane:
    """Strands that run from the crown, gloss in the light, and shadow towards the neck."""
    gather = 1 / (1 - np.float32(0.4) * unit(s.y * s.y))  # strands spread below the crown and gather far from it
    q = (np.abs(s.x) + ripple) * gather
    fine = wave(q * dice.number(8, 11) + s.y * dice.number(-1, 1)) * strands
    gloss = bump((s.x - s.light_x * 0.35) * np.float32(1.8), (s.y + 0.45 - s.light_y * 0.15) * np.float32(3.0))
    tone = 0.88 - 0.1 * radius + 0.05 * strands
    tone += (0.1 + 0.2 * gloss) * fine
    tone += gloss * (0.24 + 0.3 * s.traits.has("Straight_Hair"))  # straight hair is sleek
    tone += ripple * np.float32(4.0)
    tone += s.x * (s.light_x * 0.5)
    tone -= positive(s.y * np.float32(0.28))
    gloss *= dice.number(0.02, 0.09)
    return s.hair * np.clip(tone, 0.25, 2.0)[:, None] + gloss[:, None]


def _body(s: Scene) -> None:
    """Neck, shoulders and neckline."""
    dice, male = Dice(s.traits, 3), s.traits.has("Male")
    x = s.x - 0.04 * s.yaw
    ax = np.abs(x)
    neck = s.width * choose(male, dice.number(0.68, 0.8), dice.number(0.52, 0.62))
    cover = edge(neck + positive(s.y - s.chin) * 0.5 - ax, s.pixel + np.float32(0.015))
    below = unit((s.y - s.chin * 0.95) * np.float32(2.2))  # the jaw throws a shadow on the neck
    shade = (0.5 + 0.3 * below) * (1 - (ax * ax) * (0.35 / (neck * neck)) + s.light_x * 0.8 * x)
    blend(s.canvas, cover, s.skin * rgb(1.03, 0.97, 0.94) * np.clip(shade, 0.2, 2.0)[:, None])
    beyond, scoop = positive(ax - neck), positive(neck * 1.2 - ax)
    collar = s.chin + dice.number(0.04, 0.12)
    depth = s.y - collar - beyond * beyond * 0.5 - ax * 0.12
    depth -= scoop * ((1 - s.traits.has("Wearing_Necktie")) * dice.number(0.0, 0.5))
    fold = 0.85 + 0.1 * wave(x * dice.number(1.5, 3) + s.y * dice.number(-2, 2)) + s.light_x * 0.35 * x
    blend(s.canvas, edge(depth, s.pixel + np.float32(0.01)), dice.colour(0.05, 0.9, 0.2) * fold[:, None])


def _tie(s: Scene) -> None:
    """A pale shirt between lapels, and a tie with its knot."""
    dice = Dice(s.traits, 4)
    x = s.x - 0.04 * s.yaw
    ax = np.abs(x)
    depth = s.y - s.chin - 0.04
    shirt = edge(0.3 - ax - 0.6 * depth, s.pixel) * edge(depth - 0.1 * ax, s.pixel)
    blend(s.canvas, shirt, rgb(0.98, 0.98, 1.0) * (dice.number(0.82, 0.98) * (1 + s.light_x * x))[:, None])
    knot = np.maximum(0.075 - 0.3 * depth, 0.028 + 0.12 * depth)
    stripe = 0.9 + 0.25 * wave((x + s.y) * dice.number(3, 7)) * dice.number(0, 1)
    cover = edge(knot - ax, s.pixel) * edge(depth - np.float32(0.01), s.pixel)
    blend(s.canvas, cover, dice.colour(0.05, 0.4, 0.3) * stripe[:, None])


def _ears(s: Scene) -> None:
    dice = Dice(s.traits, 5)
    large = 1 / dice.number(0.85, 1.15)
    x, y = (np.abs(s.x) - s.width) * (large / 0.075), (s.y - np.float32(0.1)) * (large / 0.15)
    cover = edge((1 - np.sqrt(x * x + y * y)) * np.float32(0.09), s.pixel)
    cover *= unit(1 - (0.9 * s.yaw) * side_of(s.x))  # the ear on the far side hides
    shade = 0.78 - 0.35 * bump(x * np.float32(1.5), y * np.float32(1.3)) + s.light_x * 0.6 * s.x
    blend(s.canvas, cover, s.skin * rgb(1.06, 0.93, 0.9) * shade[:, None])


def _hat(s: Scene) -> None:
    """A dome, a ribbon and a brim, from a cap to a wide hat."""
    dice = Dice(s.traits, 6)
    low = s.y - dice.number(-0.36, -0.28) - 0.25 * s.x * s.x - s.x * dice.number(-0.12, 0.12)
    half = s.width + dice.number(0.05, 0.12)
    dx, dy = s.x / half, low / dice.number(0.42, 0.58)
    rest = 1 - dx * dx - dy * dy + 0.35 * (dx * dx) * (dy * dy)
    dome = edge((1 - np.sqrt(1 - np.minimum(rest, 1.0))) * np.float32(0.5), s.pixel) * edge(-low, s.pixel)
    light = 0.5 + 0.4 * np.sqrt(np.maximum(rest, 0.0)) + 0.45 * s.light_x * dx + 0.3 * s.light_y * dy
    colour = dice.colour(0.08, 0.9, 0.25)
    blend(s.canvas, dome, colour * (light + 0.05 * wave(dx * dice.number(2, 5)))[:, None])
    blend(s.canvas, stroke(low + np.float32(0.05), dice.number(0.02, 0.06), s.pixel) * dome, dice.colour(0.1, 0.8, 0.3))
    bx, by = s.x / (half + dice.number(-0.02, 0.3)), (low - np.float32(0.02)) / dice.number(0.06, 0.12)
    brim = edge((1 - np.sqrt(bx * bx + by * by)) * np.float32(0.08), s.pixel)
    blend(s.canvas, brim, colour * (0.62 + s.light_x * 0.25 * bx - 0.15 * by)[:, None])


def _earrings(s: Scene) -> None:
    """A hoop or a drop below each lobe, over the hair."""
    dice = Dice(s.traits, 7)
    x, radius = np.abs(s.x) - s.width * 1.03, dice.number(0.035, 0.075)
    y = s.y - np.float32(0.26) - radius
    ring = stroke(np.sqrt(x * x + y * y) - radius, 0.016, s.pixel)
    drop = disc(x, y * np.float32(0.6), radius * 0.6, s.pixel)
    glint = 0.75 + 0.35 * bump((x + 0.02) * np.float32(20), (y + 0.02) * np.float32(20))
    blend(s.canvas, choose((dice.number(0, 1) < 0.5).astype(np.float32), ring, drop), dice.pick(METAL) * glint[:, None])


def _develop(s: Scene, out: np.ndarray) -> None:
    """The camera: exposure and colour temperature; then round to bytes."""
    dice = Dice(s.traits, 8)
    image = s.canvas
    image *= dice.number(0.9, 1.12)[:, None] * (1 + rgb(1, 0, -1) * dice.number(-0.06, 0.06)[:, None])
    unit(image)
    image *= np.float32(255)
    image += np.float32(0.5)
    out[:] = image.transpose(0, 2, 3, 1)
