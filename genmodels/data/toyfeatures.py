"""Layers of the face of a toy face: skin with relief, eyes, brows, mouth, beard, wrinkles, glasses.

Features are drawn in face coordinates (u, v): u = 0 is the midline, which is curved if the head is
turned. Most are functions of |u|, so that both sides are drawn at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from genmodels.data.toyshapes import (
    Dice,
    Plane,
    Scene,
    blend,
    bump,
    choose,
    disc,
    edge,
    positive,
    rgb,
    side_of,
    stroke,
    unit,
    wave,
)

IRIS = (
    (0.16, 0.1, 0.06),
    (0.28, 0.17, 0.09),
    (0.35, 0.33, 0.18),
    (0.3, 0.45, 0.35),
    (0.3, 0.45, 0.6),
    (0.45, 0.5, 0.6),
)
LIPSTICK = ((0.75, 0.08, 0.14), (0.85, 0.2, 0.3), (0.6, 0.1, 0.25), (0.8, 0.3, 0.3))
FRAMES = ((0.05, 0.05, 0.06), (0.1, 0.06, 0.05), (0.3, 0.15, 0.08), (0.6, 0.55, 0.45))


@dataclass
class Face(Scene):
    """A window on the face, with the places that several features share."""

    u: Plane
    v: Plane
    cover: Plane  # of the head
    facing: Plane  # how much the relief faces the light
    spread: Plane  # from the midline to the centre of an eye
    mouth: Plane  # height of the mouth
    nose: Plane  # height of the tip of the nose
    tip: Plane  # how far the tip of the nose stands out sideways


def face(view: Scene) -> None:
    """Paint the head without its hair and ears, on a window that holds it."""
    f, dice = view.traits, Dice(view.traits, 10)
    above, below = positive(-view.y), positive(view.y.copy())
    low = below / view.chin
    hx = view.x / (view.width * (1 - low * low * dice.number(0.06, 0.2)))
    hy = low - above / view.top
    square = choose(f.has("Male"), dice.number(0.15, 0.6), dice.number(0.0, 0.3))
    square += 0.25 * f.has("Chubby") - 0.2 * f.has("Oval_Face")
    ox, oy = hx * hx, hy * hy
    corners = unit(square * low + unit(above * np.float32(4)) * np.float32(0.35))
    corners *= unit(ox.copy())
    corners *= unit(oy.copy())
    shape = ox + oy - corners
    rise = positive(1 - shape)
    s = Face(
        **{field.name: getattr(view, field.name) for field in fields(view)},
        u=view.x - (0.11 * view.yaw) * rise,
        v=view.y - (0.05 * view.pitch) * rise,
        facing=np.zeros_like(rise),
        cover=edge((1 - np.sqrt(shape)) * (view.width * 1.15), view.pixel + np.float32(0.008)),
        spread=dice.number(0.205, 0.23),
        mouth=dice.number(0.425, 0.465),
        nose=dice.number(0.235, 0.275),
        tip=0.035 * view.yaw,
    )
    _relief(s)
    _skin(s, hx, hy, rise)
    s.paint(_folds, 0.1, 0.75, 0.55, only=f.has("Smiling") + 1 - f.has("Young"))
    s.paint(_lines, -0.6, 0.3, 0.55, only=1 - f.has("Young"))
    s.paint(_eyes, -0.3, 0.24, 0.5)
    s.paint(_brows, -0.42, 0.12, 0.56)
    s.paint(_whiskers, 0.15, 0.98, 0.6, only=1 - f.has("No_Beard"))
    s.paint(_mouth, 0.2, 0.84, 0.42)


def _emboss(s: Face, u: Plane, centre: tuple, radii: tuple, height: Plane | float, side: Plane | float = 1.0) -> None:
    """Add a smooth bump to the relief; one on each side if u is |u| and `side` its sign."""
    du = (u - centre[0]) * (1 / radii[0])
    dv = (s.v - centre[1]) * (1 / radii[1])
    rest = 1 - du * du
    rest -= dv * dv
    positive(rest)
    du *= s.light_x * (height * 0.6 / radii[0])
    du *= side
    dv *= s.light_y * (height * 0.6 / radii[1])
    du += dv
    rest *= du
    s.facing += rest


def _relief(s: Face) -> None:
    """Brow ridge, sockets, eyeballs, cheeks, nose, lips and chin, as smooth bumps on the head."""
    f, dice = s.traits, Dice(s.traits, 11)
    big, smile, chubby = f.has("Big_Nose"), f.has("Smiling"), f.has("Chubby")
    wide = choose(big, dice.number(0.14, 0.165), dice.number(0.085, 0.105))
    ridge = dice.number(0.05, 0.07) + 0.012 * big
    cheek = dice.number(0.1, 0.2) + 0.12 * smile + 0.1 * chubby
    part, place = s.window(-0.42, 0.32)
    au, side = np.abs(part.u), side_of(part.u)
    _emboss(part, au, (s.spread, 0.0), (0.15, 0.11), -0.22, side)  # sockets
    _emboss(part, au, (s.spread, 0.015), (0.11, 0.07), 0.14, side)  # eyeballs
    _emboss(part, au, (s.spread * 0.95, -0.15), (0.2, 0.09), 0.1, side)  # brow ridge
    s.facing[:, *place] = part.facing
    part, place = s.window(-0.42, 0.52, 0.4)
    _emboss(part, np.abs(part.u), (wide * 0.72, s.nose + 0.015), (wide * 0.55, 0.055), 0.16, side_of(part.u))  # wings
    _emboss(part, part.u, (s.tip * 0.5, s.nose - 0.13), (ridge, 0.24), 0.2)  # bridge of the nose
    _emboss(part, part.u, (s.tip, s.nose), (wide * 0.75, 0.075), 0.3 + 0.08 * big)  # its tip
    s.facing[:, *place] = part.facing
    part, place = s.window(0.0, 0.98)
    _emboss(part, np.abs(part.u), (0.255, 0.24 - 0.03 * smile), (0.2, 0.18), cheek, side_of(part.u))
    _emboss(part, part.u, (s.tip * 0.3, s.mouth), (0.17, 0.1), 0.1)  # lips
    _emboss(part, part.u, (0.0, s.mouth + 0.1), (0.13, 0.045), -0.1)  # the hollow under them
    _emboss(part, part.u, (0.0, s.chin - 0.1), (0.15, 0.12), dice.number(0.1, 0.2))  # chin
    s.facing[:, *place] = part.facing


def _skin(s: Face, hx: Plane, hy: Plane, rise: Plane) -> None:
    """The lit skin: diffuse light, a shadow under the nose, red cheeks, gloss, nostrils."""
    f, dice = s.traits, Dice(s.traits, 12)
    hx *= np.float32(0.8)
    hy *= np.float32(0.62)
    rise += np.float32(0.12)
    facing = hx * s.light_x + hy * s.light_y + np.sqrt(rise) * s.light_z
    towards = 1 / np.sqrt(hx * hx + hy * hy + rise)  # one over the length of the normal
    facing *= towards
    facing += s.facing
    shade = unit(facing * np.float32(0.85) + np.float32(0.15)) * (1.1 - s.ambient) + s.ambient
    nose, (rows, columns) = s.window(-0.05, 0.6, 0.4)
    under = bump((nose.u - s.tip + 0.05 * s.light_x) / np.float32(0.13), (nose.v - s.nose - 0.075) / np.float32(0.06))
    holes = bump((np.abs(nose.u - s.tip) - 0.045) / np.float32(0.032), (nose.v - s.nose - 0.045) / np.float32(0.022))
    shade[:, rows, columns] *= (1 - 0.3 * under) * (1 - 0.6 * holes)
    cheek = bump((np.abs(s.u) - 0.26) / np.float32(0.19), (s.v - 0.23) / np.float32(0.17))
    flush = choose(f.has("Rosy_Cheeks"), dice.number(0.6, 0.85), dice.number(0.0, 0.2))
    cheek *= flush * (1 - 0.4 * f.has("Pale_Skin"))
    cheek += bump((s.u - s.tip) / np.float32(0.12), (s.v - s.nose) / np.float32(0.12)) * dice.number(0.0, 0.3)
    gloss = facing * facing
    gloss -= np.float32(0.72)
    positive(gloss)
    gloss *= gloss * dice.number(0.2, 1.4)
    np.clip(gloss, 0, 0.28, out=gloss)
    warm = s.skin * rgb(0.32, 0.02, -0.1)  # light that went through skin comes out red
    colour = (s.skin + warm) - warm * shade[:, None]
    colour -= (s.skin * rgb(0.02, 0.3, 0.24)) * cheek[:, None]
    colour *= shade[:, None]
    colour += gloss[:, None]
    blend(s.canvas, s.cover, colour)


def _folds(s: Face) -> None:
    """The folds from the nose past the corners of the mouth."""
    f, dice = s.traits, Dice(s.traits, 13)
    depth = choose(f.has("Young"), 0.0, dice.number(0.25, 0.4)) + 0.14 * f.has("Smiling")
    t = (s.v - s.nose) / (s.mouth - s.nose + 0.04)
    across = np.abs(s.u) - 0.11 - (0.08 + 0.04 * f.has("Smiling")) * t
    cover = bump(across / np.float32(0.05), (t - 0.55) / np.float32(0.75)) * depth
    blend(s.canvas, cover, s.skin * rgb(0.5, 0.36, 0.32))


def _lines(s: Face) -> None:
    """Bags under the eyes and lines on the forehead."""
    dice = Dice(s.traits, 14)
    au = np.abs(s.u) - s.spread
    bags = stroke(s.v - 0.09 + 3 * au * au, 0.016, s.pixel) * bump(au * np.float32(9), (s.v - 0.08) * np.float32(8))
    brow = s.v + 0.37 + 0.25 * s.u * s.u
    lines = positive(wave(brow * np.float32(9))) * bump(s.u * np.float32(3.2), brow * np.float32(7))
    dark = bags * dice.number(0.4, 0.65) + lines * dice.number(0.25, 0.45)
    blend(s.canvas, dark, s.skin * rgb(0.5, 0.38, 0.34))


def _eyes(s: Face) -> None:
    f, dice = s.traits, Dice(s.traits, 15)
    male, narrow, lipstick = f.has("Male"), f.has("Narrow_Eyes"), f.has("Wearing_Lipstick")
    half = dice.number(0.095, 0.11)
    tall = choose(narrow, dice.number(0.024, 0.031), dice.number(0.049, 0.062)) * (1 - 0.12 * f.has("Smiling"))
    side = side_of(s.u)
    au = np.abs(s.u) - s.spread
    v = s.v - dice.number(-0.16, 0.04) * au
    t = au / half
    arch = 1 - t * t
    up, down = v + (tall * (1 - 0.15 * t)) * arch, (0.6 * tall) * arch - v  # distances into the eye from its two lids
    paint = bump(t * np.float32(0.8), (up + 0.03) * np.float32(14)) * (lipstick * dice.number(0.0, 0.5))
    blend(s.canvas, paint, dice.colour(0.15, 0.45, 0.12))
    crease = stroke(up + 0.045 * arch, 0.01, s.pixel) * (0.5 - 0.25 * narrow)
    crease += stroke(down, 0.006, s.pixel) * np.float32(0.5)
    blend(s.canvas, crease * unit(arch * np.float32(3)), s.skin * rgb(0.48, 0.36, 0.32))
    white = edge(up, s.pixel) * edge(down, s.pixel)
    lit = (0.95 - 0.12 * t * t - 0.35 * edge(0.02 - up, np.float32(0.04))) * (0.65 + 0.4 * s.ambient)
    eye = lit[:, None] * rgb(0.98, 0.95, 0.93)
    gaze, radius = dice.number(-0.025, 0.025), dice.number(0.042, 0.05)
    iu, iv = au - gaze * side, v - dice.number(-0.014, 0.008)
    away = np.sqrt(iu * iu + iv * iv)
    colour = dice.pick(IRIS, 1 - 0.7 * (f.tone > 0.6)[:, None, None]) * (0.75 + 7 * iv)[:, None]
    blend(eye, edge(radius - away, s.pixel), colour * (1 - 0.9 * edge(0.45 * radius - away, s.pixel))[:, None])
    eye += disc((iu - 0.025 * s.light_x * side), iv + 0.016, 0.013, s.pixel)[:, None]
    blend(s.canvas, white, np.minimum(eye, 1.0))
    lash = choose(male, 0.01, dice.number(0.013, 0.018) + 0.006 * lipstick)
    line = stroke(up - 0.4 * lash, lash, s.pixel) * edge(arch + 0.02, np.float32(0.1))
    blend(s.canvas, line * (0.9 - 0.25 * male), rgb(0.08, 0.05, 0.05))


def _whisker_colour(s: Face, hair: float, skin: float) -> Plane:
    """The colour of brows and beard: that of the hair, darker; on a bald head, of dark skin."""
    return np.where(s.traits.has("Bald")[:, None] > 0.5, s.skin * rgb(0.33, 0.27, 0.24), s.hair * hair + s.skin * skin)


def _brows(s: Face) -> None:
    f, dice = s.traits, Dice(s.traits, 16)
    male, arched, bushy = f.has("Male"), f.has("Arched_Eyebrows"), f.has("Bushy_Eyebrows")
    t = (np.abs(s.u) - s.spread * dice.number(1.0, 1.08)) / dice.number(0.125, 0.145)
    lift = choose(male, dice.number(0.115, 0.14), dice.number(0.13, 0.165)) + 0.015 * arched
    bow = choose(arched, dice.number(0.045, 0.06), dice.number(0.008, 0.028))
    outer = positive(t - np.float32(0.25))  # beyond the peak, where the brow falls faster
    distance = s.v + lift - bow * ((t - 0.25) * (t - 0.25) + outer * outer) + dice.number(-0.02, 0.01) * t
    thick = choose(male, dice.number(0.02, 0.026), dice.number(0.011, 0.019)) * (1 - 0.2 * arched) + 0.015 * bushy
    cover = edge(thick * unit(1.15 - t * (0.5 + 0.35 * t)) - np.abs(distance), s.pixel)
    cover *= edge(1.05 - np.abs(t), np.float32(0.25)) * (choose(male, 0.75, dice.number(0.5, 0.75)) + 0.2 * bushy)
    cover *= 1 + 0.12 * bushy * (wave(t * dice.number(3, 5) + 9 * s.v) - 1)
    blend(s.canvas, cover, _whisker_colour(s, 0.55, 0.06))


def _whiskers(s: Face) -> None:
    """Stubble, moustache, goatee and full beard: soft masks, darkened strand by strand."""
    f, dice = s.traits, Dice(s.traits, 17)
    au = np.abs(s.u)
    cheek = 0.42 - 1.6 * positive(au - np.float32(0.15)) * (au + np.float32(0.3))
    jaw = edge(s.v - cheek, np.float32(0.1)) * s.cover
    du, dv = s.u / dice.number(0.13, 0.17), (s.v - s.mouth - 0.16) / dice.number(0.13, 0.17)
    chin = edge(1 - np.sqrt(du * du + dv * dv), np.float32(0.35)) * s.cover
    droop = s.v - (s.nose + s.mouth) * 0.5 - 0.025 - s.u * s.u * dice.number(0.4, 2.2)
    lip = edge(dice.number(0.026, 0.036) - np.abs(droop), s.pixel + np.float32(0.02))
    lip *= edge(dice.number(0.14, 0.18) - au, np.float32(0.04))
    stubble = np.maximum(jaw, lip) * (f.has("5_o_Clock_Shadow") * dice.number(0.3, 0.45))
    blend(s.canvas, stubble, s.skin * rgb(0.38, 0.36, 0.38))
    hairs = wave(s.u * dice.number(6, 9) + s.v * dice.number(-2, 2)) * wave(s.v * dice.number(3, 6) + 2 * s.u)
    dense = np.maximum(np.maximum(lip * f.has("Mustache"), chin * f.has("Goatee")), jaw * f.has("full beard"))
    dense *= (0.86 + 0.12 * hairs) * dice.number(0.8, 0.97)
    blend(s.canvas, dense, _whisker_colour(s, 0.72, 0.0) * (1 + 0.5 * s.facing)[:, None])


def _mouth(s: Face) -> None:
    f, dice = s.traits, Dice(s.traits, 18)
    smile, lipstick, opened = f.has("Smiling"), f.has("Wearing_Lipstick"), f.has("Mouth_Slightly_Open")
    half = dice.number(0.125, 0.15) + smile * dice.number(0.035, 0.055)
    t = (s.u - 0.015 * s.yaw) / half
    tt = t * t
    body = positive(1 - tt)
    curve = choose(smile, dice.number(0.04, 0.065), dice.number(-0.014, 0.01))
    v = s.v - s.mouth - curve * (0.4 - tt) - dice.number(-0.01, 0.01) * t
    gap = opened * (dice.number(0.026, 0.042) + 0.008 * smile) * body
    fat = 1 + f.has("Big_Lips") * dice.number(0.6, 0.85) - smile * 0.12
    notch = positive(1 - 20 * tt)  # Cupid's bow
    upper = (dice.number(0.026, 0.034) * fat) * body * (1 - 0.3 * notch * notch)
    lower = (dice.number(0.034, 0.044) * fat) * body
    ends = edge(body - 0.06, np.float32(0.1))
    cover = edge(v + gap + upper, s.pixel) * edge(gap + lower - v, s.pixel) * ends
    natural = s.skin * rgb(0.86, 0.62, 0.6)
    worn = (lipstick * dice.number(0.65, 0.95))[:, None]
    colour = natural + worn * (dice.pick(LIPSTICK) * (0.5 + 0.5 * s.skin) - natural)
    shine = bump(t * np.float32(1.8), (v - gap - lower * 0.5) * np.float32(28)) * (0.09 + 0.22 * lipstick)
    light = (0.74 + 0.2 * edge(v, np.float32(0.03)) + shine + s.light_x * 0.12 * t) * (0.6 + 0.5 * s.ambient)
    blend(s.canvas, cover * (0.92 - 0.17 * f.has("Male")), colour * light[:, None])
    hole = edge(gap - np.abs(v), s.pixel) * ends * (opened * 0.97)
    bite = edge(gap * choose(smile, 0.75, 0.0) - v, s.pixel) * edge(0.9 - np.abs(t), np.float32(0.25))
    dark = rgb(0.22, 0.06, 0.06)
    blend(s.canvas, hole, dark + (rgb(0.95, 0.93, 0.88) - dark) * (bite * (1 - 0.25 * np.abs(t)))[:, None])
    seam = stroke(v, 0.008, s.pixel) * ((1 - opened) * 0.75) * edge(1 - np.abs(t), np.float32(0.15))
    seam += bump((np.abs(t) - 1) * np.float32(6), v * np.float32(25)) * np.float32(0.4)  # corners
    blend(s.canvas, unit(seam), s.skin * rgb(0.38, 0.2, 0.19))


def glasses(s: Scene) -> None:
    """Frames around the eyes, a bridge, temples towards the ears, and lenses from clear to dark."""
    dice = Dice(s.traits, 19)
    rise = positive(1 - (s.x / s.width) ** 2 - s.y**2)
    u, v = s.x - 0.11 * s.yaw * rise, s.y - 0.05 * s.pitch * rise - dice.number(0.0, 0.03)
    au = np.abs(u)
    x, y = (au - dice.number(0.215, 0.23)) / dice.number(0.15, 0.175), v / dice.number(0.1, 0.145)
    x, y = x * x, y * y
    distance = (1 - np.sqrt(x + y - dice.number(0.0, 0.9) * (unit(x.copy()) * unit(y.copy())))) * np.float32(0.14)
    lens = edge(distance, s.pixel)
    blend(s.canvas, lens * np.clip(dice.number(-1.2, 1.0), 0.06, 0.85), dice.colour(0.05, 0.3, 0.1))
    slant, level = 9 * (u - 0.6 * v), 7 * v
    glare = bump(slant - np.float32(1.1), level) + bump(slant + np.float32(2.7), level)
    blend(s.canvas, glare * lens * dice.number(0.1, 0.4), rgb(1, 1, 1))
    thick, bar = dice.number(0.01, 0.02), v + np.float32(0.02)
    bars = np.maximum(edge(0.08 - au, s.pixel), edge(au - 0.37, s.pixel) * edge(s.width - np.abs(s.x), s.pixel))
    frame = np.maximum(stroke(distance, thick, s.pixel), stroke(bar, thick, s.pixel) * bars)
    blend(s.canvas, frame * np.float32(0.95), dice.pick(FRAMES) * (1 + s.light_x * u)[:, None])
