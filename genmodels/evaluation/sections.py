"""What the page of a comparison says and shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from genmodels.evaluation.columns import Column, amount, definition, numbers
from genmodels.evaluation.figures import better_corner, originals_first, plot, same_originals, samples_shown, trade_offs
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.report import INK, Figure, Section, drawn_in, markup, tiles
from genmodels.evaluation.results import Evaluation, Subject

FIELDS = {
    "n": "images measured",
    "n_reference": "real images compared with",
    "reference": "fingerprint of the real images",
    "size": "side in pixels",
    "filter": "resized from the source by",
    "extractor": "features of",
    "weights": "its weights, SHA-256",
    "resize": "resized for it by",
    "train": "training images",
    "attributes": "attributes measured",
    "alphabet": "bits per token of the codes of",
    "definitions": "version of the definitions",
}
"""What the fields of a protocol are called where their names do not say it."""
LICENCE = "are images of the data set: mind its licence before you pass this page on."


def title(subjects: Sequence[Subject]) -> str:
    if len(subjects) == 1:
        return subjects[0].name
    kinds = {subject.kind == "images" for subject in subjects}
    what = "models and sets of images" if len(kinds) == 2 else "sets of images" if True in kinds else "models"
    return f"{len(subjects)} {what} side by side"


def lead(evaluations: Sequence[Evaluation], found: Sequence[Column]) -> str:
    """What was compared, on which data, and who came out best at the first measure that says so."""
    names = [e.subject.name for e in evaluations]
    protocol = _main_protocol(found)
    who = f"{_listed(names)}: " if 1 < len(names) < 4 else ""
    each = f"{protocol.n:,} images{' of each' if len(names) > 1 else ''}" if protocol.n else "Measured"
    against = f" against {protocol.n_reference:,} real ones" if protocol.n_reference else ""
    data = [protocol.data, protocol.split and f"split {protocol.split}", protocol.size and f"{protocol.size} pixels"]
    where = f" of {', '.join(known)}" if (known := [words for words in data if words]) else ""
    return " ".join(filter(None, [f"{who}{each}{against}{where}.", _headline(names, found)]))


def _headline(names: Sequence[str], found: Sequence[Column]) -> str:
    """Who is best at the first measure that can tell; "" where none can."""
    for column in found:
        if column.best is not None:
            best = [n for n, score in zip(names, column.scores, strict=True) if score and score.value == column.best]
            verb = "has" if len(best) == 1 else "have"
            extreme = {"lower": "lowest", "higher": "highest"}[column.first.better]
            number = amount(column.best, column.first.unit)
            floor = f"; real images at the same n have {column.floor}" if column.floor else ""
            return f"{_listed(best)} {verb} the {extreme} {column.title}, {number}{floor}."
    return ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _main_protocol(found: Sequence[Column]) -> Protocol:
    """Of the first measure, which the page is mostly about; of nothing where nothing was measured."""
    return found[0].first.protocol if found else Protocol()


def facts(evaluations: Sequence[Evaluation], found: Sequence[Column]) -> dict[str, str]:
    protocol = _main_protocol(found)
    dates = sorted({e.made["date"] for e in evaluations if "date" in e.made})
    known = {
        "images measured, each": f"{protocol.n:,}" if protocol.n else "",
        "real images": f"{protocol.n_reference:,}" if protocol.n_reference else "",
        "picture size": f"{protocol.size} x {protocol.size}" if protocol.size else "",
        "features of": protocol.extractor or "",
        "on": " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])),
    }
    return {name: value for name, value in known.items() if value}


def sections(evaluations: Sequence[Evaluation], found: Sequence[Column], command: str) -> list[Section]:
    """What the page shows, in order; without the sections that would be empty."""
    all_of_them = [
        Section("Results", _how_to_read(found), numbers=numbers(evaluations, found)),
        _samples(evaluations),
        _reconstructions(evaluations),
        _neighbours(evaluations),
        _quality_and_cost(evaluations, found),
        _protocol(found),
        _definitions(evaluations, found),
        _absent(evaluations),
        _subjects(evaluations),
        _versions(evaluations),
        Section("To do it again", code=command) if command else None,
    ]
    return [section for section in all_of_them if section is not None]


def _how_to_read(found: Sequence[Column]) -> list[str]:
    if not found:
        return ["Nothing was measured."]
    text = "An arrow says whether a higher or a lower number is better, and what stands after ± is the standard error."
    if any(column.best is not None for column in found):
        text += " The best of a column is bold, be it ever so close. Click a heading to sort by it."
    paragraphs = [text]
    if any(column.first.protocol.extractor == "faces" for column in found):
        paragraphs.append(
            "The extractor faces minds blur above all and lets sharp but broken faces pass, in FD and in its other "
            "measures: where samples are not smoothed alike, judge by looking at them, or by another extractor."
        )
    return paragraphs


def _samples(evaluations: Sequence[Evaluation]) -> Section | None:
    having = [e for e in evaluations if "samples" in e.pictures]
    if not having:
        return None
    figures = []
    for e in having:
        shown, across = samples_shown(e.pictures["samples"], 1056 if len(having) == 1 else 528)
        origin = f"of seed {e.subject.seed}" if e.subject.seed is not None else "that were given"
        caption = f"The first {len(shown)} images {origin}, unselected."
        figures.append(Figure(e.subject.name, caption, tiles(shown, across), width="half"))
    return Section("Samples", figures=_wide_if_alone(figures), wide=True)


def _reconstructions(evaluations: Sequence[Evaluation]) -> Section | None:
    figures = []
    for together in same_originals(evaluations):
        rows = originals_first(together)
        for start in range(0, min(16, len(rows[0][1])), 8):
            strips = [(name, tiles(images[start : start + 8], 8)) for name, images in rows]
            figures.append(Figure("Originals above, reconstructions below.", rows=strips, width="half"))
    text = [f"The same images through every model that can reconstruct. The originals {LICENCE}"]
    return Section("Reconstructions", text, _wide_if_alone(figures), wide=True) if figures else None


def _neighbours(evaluations: Sequence[Evaluation]) -> Section | None:
    figures = []
    for e in evaluations:
        if {"nearest samples", "nearest train"} <= e.pictures.keys():
            pairs = [("sample", "nearest samples"), ("nearest training image", "nearest train")]
            rows = [(words, tiles(e.pictures[name][:8], 8)) for words, name in pairs]
            figures.append(Figure(e.subject.name, rows=rows, width="half"))
    text = [
        "Of all samples those closest to a training image, each above that image: copies would show here. "
        f"The lower rows {LICENCE}"
    ]
    return Section("Nearest training images", text, _wide_if_alone(figures), wide=True) if figures else None


def _wide_if_alone(figures: Sequence[Figure]) -> Sequence[Figure]:
    return [replace(figures[0], width="full")] if len(figures) == 1 else figures


def _quality_and_cost(evaluations: Sequence[Evaluation], found: Sequence[Column]) -> Section | None:
    names = [e.subject.name for e in evaluations]
    figures = []
    for quality, cost in trade_offs(found):
        with drawn_in(INK):
            drawing = markup(plot(names, quality, cost, INK))
        corner = better_corner(quality, cost)
        title = f"{quality.title} and {cost.title}."
        figures.append(Figure(title, f"The better, the nearer to the {corner}.", svg=drawing, width="half"))
    return Section("Quality and cost", figures=figures) if figures else None


def _protocol(found: Sequence[Column]) -> Section | None:
    """One row per field. Where measures differ in it, each value with those it belongs to."""
    measured = [column for column in found if column.name != "training-minutes"]
    rows = []
    for field in fields(Protocol):
        values: dict[str, list[str]] = {}
        for column in measured:
            if (value := getattr(column.first.protocol, field.name)) is not None:
                values.setdefault(f"{value:,}" if isinstance(value, int) else value, []).append(column.name)
        shared = len(values) == 1
        words = [value if shared else f"{value} ({', '.join(names)})" for value, names in values.items()]
        rows += [[FIELDS.get(field.name, field.name), "; ".join(words)]] if words else []
    text = ["All that these numbers depend on beside what was measured; the same for every row of the tables above."]
    return Section("Protocol", text, table=[["", "value"], *rows]) if rows else None


def _definitions(evaluations: Sequence[Evaluation], found: Sequence[Column]) -> Section | None:
    rows = []
    for c in found:
        unit = f" ({c.first.unit})" if c.first.unit else ""
        rows.append([c.name + unit, c.first.better, definition(evaluations, c)])
    return Section("What was computed", table=[["measure", "better", "how"], *rows]) if rows else None


def _absent(evaluations: Sequence[Evaluation]) -> Section | None:
    subjects: dict[tuple[str, str], list[str]] = {}
    for e in evaluations:
        for measure, why in e.absent.items():
            subjects.setdefault((measure, why), []).append(e.subject.name)
    rows = [
        [measure, "all" if len(names) == len(evaluations) > 1 else ", ".join(names), why]
        for (measure, why), names in subjects.items()
    ]
    return Section("What was not measured", table=[["measure", "of", "why"], *rows]) if rows else None


def _subjects(evaluations: Sequence[Evaluation]) -> Section:
    head = ["subject", "kind", "weights", "seed", "sampling", "training", "converted", "images"]
    rows = []
    for e in evaluations:
        s = e.subject
        options = ", ".join(f"{name} {value}" for name, value in s.options.items())
        training = ", ".join(f"{amount(value)} {name}" for name, value in s.training.items())
        seed = "" if s.seed is None else str(s.seed)
        rows.append([s.name, s.kind, s.weights, seed, options, training, "; ".join(s.notes), s.fingerprint])
    known = [i for i, words in enumerate(zip(*rows, strict=True)) if any(words)]
    return Section("How each was made", table=[[row[i] for i in known] for row in [head, *rows]])


def _versions(evaluations: Sequence[Evaluation]) -> Section:
    """What measured them: one row for all that were measured alike."""
    names = list(dict.fromkeys(name for e in evaluations for name in e.made))
    alike: dict[tuple[str, ...], list[str]] = {}
    for e in evaluations:
        alike.setdefault(tuple(e.made.get(name, "") for name in names), []).append(e.subject.name)
    rows = [["all" if len(of) == len(evaluations) else ", ".join(of), *values] for values, of in alike.items()]
    return Section("Measured by", table=[["subjects", *names], *rows])
