"""Contents of the page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from genmodels.evaluation.columns import DASH, FLOOR, Column, amount, definition, numbers
from genmodels.evaluation.figures import (
    better_corner,
    class_caption,
    class_samples,
    extremes,
    originals_first,
    plot,
    same_originals,
    samples_shown,
    trade_offs,
)
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.report import INK, Figure, Section, drawn_in, markup, tiles
from genmodels.evaluation.results import Evaluation, Score, Subject

FIELDS = {
    "n": "images measured",
    "n_reference": "real images compared with",
    "reference": "fingerprint of the real images",
    "size": "image size in pixels",
    "filter": "resize filter of the source images",
    "extractor": "feature extractor",
    "weights": "weights of the extractor, SHA-256",
    "resize": "resize filter of the extractor",
    "train": "training images",
    "attributes": "attributes measured",
    "classes": "classes measured",
    "text": "prompts or captions",
    "alphabet": "codec of the codes",
    "definitions": "version of the definitions",
}
"""Labels of the fields of a protocol that differ from their names."""
LICENCE = "are images of the data set. Check its licence before you share this page."


def title(subjects: Sequence[Subject]) -> str:
    """Return the title of the page."""
    if len(subjects) == 1:
        return subjects[0].name
    kinds = {subject.kind == "images" for subject in subjects}
    what = "models and sets of images" if len(kinds) == 2 else "sets of images" if True in kinds else "models"
    return f"Comparison of {len(subjects)} {what}"


def lead(evaluations: Sequence[Evaluation], metrics: Sequence[Column]) -> str:
    """Return what was compared, on which data, and which subject is best by the first metric that
    has a best value."""
    names = [e.subject.name for e in evaluations]
    protocol = _main_protocol(metrics)
    who = f"{_listed(names)}: " if 1 < len(names) < 4 else ""
    each = f"{protocol.n:,} images{' of each' if len(names) > 1 else ''}" if protocol.n else "Measured"
    against = f" compared with {protocol.n_reference:,} real images" if protocol.n_reference else ""
    data = [protocol.data, protocol.split and f"split {protocol.split}", protocol.size and f"{protocol.size} pixels"]
    where = f" of {', '.join(known)}" if (known := [words for words in data if words]) else ""
    return " ".join(filter(None, [f"{who}{each}{against}{where}.", _headline(names, metrics)]))


def _headline(names: Sequence[str], metrics: Sequence[Column]) -> str:
    """Return which subject is best by the first metric that has a best value, or ""."""
    for column in metrics:
        if column.best is not None:
            best = [n for n, score in zip(names, column.scores, strict=True) if score and score.value == column.best]
            verb = "has" if len(best) == 1 else "have"
            extreme = {"lower": "lowest", "higher": "highest"}[column.first.better]
            number = amount(column.best, column.first.unit)
            floor = f" (floor: {column.floor})" if column.floor else ""
            return f"{_listed(best)} {verb} the {extreme} {column.title}, {number}{floor}."
    return ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _main_protocol(metrics: Sequence[Column]) -> Protocol:
    """Return the protocol of the first metric, or an empty one if nothing was measured."""
    return metrics[0].first.protocol if metrics else Protocol()


def facts(evaluations: Sequence[Evaluation], metrics: Sequence[Column]) -> dict[str, str]:
    """Return the main facts about the comparison, by label."""
    protocol = _main_protocol(metrics)
    dates = sorted({e.made["date"] for e in evaluations if "date" in e.made})
    known = {
        "images per subject": f"{protocol.n:,}" if protocol.n else "",
        "real images": f"{protocol.n_reference:,}" if protocol.n_reference else "",
        "image size": f"{protocol.size} x {protocol.size}" if protocol.size else "",
        "feature extractor": protocol.extractor or "",
        "date": " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])),
    }
    return {name: value for name, value in known.items() if value}


def sections(evaluations: Sequence[Evaluation], metrics: Sequence[Column], command: str) -> list[Section]:
    """Return the sections of the page, without empty ones."""
    candidates = [
        Section("Results", _how_to_read(metrics), numbers=numbers(evaluations, metrics)),
        _samples(evaluations),
        _classes(evaluations, metrics),
        _attributes(evaluations, metrics),
        _reconstructions(evaluations),
        _single(evaluations),
        _neighbours(evaluations),
        _quality_and_cost(evaluations, metrics),
        _protocol(metrics),
        _definitions(evaluations, metrics),
        _absent(evaluations),
        _subjects(evaluations),
        _versions(evaluations),
        Section("Command", code=command) if command else None,
    ]
    return [section for section in candidates if section is not None]


def _how_to_read(metrics: Sequence[Column]) -> list[str]:
    if not metrics:
        return ["Nothing was measured."]
    text = "Arrows show whether higher or lower values are better. The standard error follows ±."
    if any(column.best is not None for column in metrics):
        text += " The best value of each column is bold, even if others are within its error."
        text += " Click a heading to sort by it."
    paragraphs = [text]
    if any(column.floor for column in metrics):
        paragraphs.append(
            f"The row “{FLOOR}” is the floor of each metric: the same metric, measured between real images and other "
            "real images. By that metric, a model at the floor cannot be distinguished from real images."
        )
    if any(column.stem.startswith("recall@") and column.floor for column in metrics):
        paragraphs.append(
            "In the columns of retrieval, that row is an oracle: the highest recall that can be expected, given which "
            "captions also fit other images."
        )
    if any(column.first.protocol.extractor == "faces" for column in metrics):
        paragraphs.append(
            "The extractor “faces” penalises blur more than anything else, and does not penalise faces that are sharp "
            "but malformed. This affects FD and all other metrics that use its features. If the samples of the "
            "subjects differ in sharpness, look at them, or use another extractor."
        )
    return paragraphs


def _samples(evaluations: Sequence[Evaluation]) -> Section | None:
    having = [e for e in evaluations if "samples" in e.pictures]
    if not having:
        return None
    figures = []
    for e in having:
        shown, across = samples_shown(e.pictures["samples"], 1056 if len(having) == 1 else 528)
        origin = f"samples of seed {e.subject.seed}" if e.subject.seed is not None else "images of the set"
        caption = f"The first {len(shown)} {origin}, {_selection(e)}."
        figures.append(Figure(e.subject.name, caption, tiles(shown, across), width="half"))
    return Section("Samples", figures=_wide_if_alone(figures), wide=True)


def _selection(e: Evaluation) -> str:
    return f"each the {e.subject.choice}" if e.subject.choice else "not selected"


def _classes(evaluations: Sequence[Evaluation], metrics: Sequence[Column]) -> Section | None:
    """Show samples of some classes with their accuracy, and a table with the scores of each class."""
    measured = [column for column in metrics if column.first.protocol.classes]
    labels = next((column.scores for column in measured if column.stem == "labels"), (None,) * len(evaluations))
    figures = []
    for e, score in zip(evaluations, labels, strict=True):
        if rows := [(class_caption(name, score), tiles(images, 8)) for name, images in class_samples(e)]:
            caption = f"The first samples of each class, {_selection(e)}."
            figures.append(Figure(e.subject.name, caption, rows=rows, width="half"))
    table = _by_part("class", evaluations, measured)
    text = ["Each class was requested equally often. Floors, of real images, are in parentheses."]
    return Section("Classes", text, _wide_if_alone(figures), table, wide=True) if measured or figures else None


def _attributes(evaluations: Sequence[Evaluation], metrics: Sequence[Column]) -> Section | None:
    """Show a table with the scores of each attribute."""
    table = _by_part("attribute", evaluations, [column for column in metrics if column.first.protocol.attributes])
    text = ["Scores by attribute. Those of real images, where they are known, are in parentheses."]
    return Section("Attributes", text, table=table, wide=True) if table else None


def _by_part(what: str, evaluations: Sequence[Evaluation], measured: Sequence[Column]) -> Sequence[Sequence[str]]:
    """Return a table of the parts that scores are means of, one row for each; () if there are none."""
    names = dict.fromkeys(name for column in measured for score in column.scores if score for name in score.each)
    having = [(e, c, s) for c in measured for e, s in zip(evaluations, c.scores, strict=True) if s is not None]
    head = [c.title if len(evaluations) == 1 else f"{c.title}, {e.subject.name}" for e, c, _ in having]
    rows = [[name, *(_of_part(score, name) for _, _, score in having)] for name in names]
    return [[what, *head], *rows] if rows else ()


def _of_part(score: Score, name: str) -> str:
    """Return the value of one part, with its floor in parentheses."""
    if name not in score.each:
        return DASH
    floor = f" ({amount(score.each_floor[name])})" if name in score.each_floor else ""
    return f"{amount(score.each[name])}{floor}"


def _reconstructions(evaluations: Sequence[Evaluation]) -> Section | None:
    figures = []
    for together in same_originals(evaluations):
        rows = originals_first(together)
        for start in range(0, min(16, len(rows[0][1])), 8):
            strips = [(name, tiles(images[start : start + 8], 8)) for name, images in rows]
            figures.append(Figure("Originals (top row) and reconstructions.", rows=strips, width="half"))
    text = [f"The same images, reconstructed by each model that can. The originals {LICENCE}"]
    return Section("Reconstructions", text, _wide_if_alone(figures), wide=True) if figures else None


def _neighbours(evaluations: Sequence[Evaluation]) -> Section | None:
    figures = []
    for e in evaluations:
        if {"nearest samples", "nearest train"} <= e.pictures.keys():
            pairs = [("sample", "nearest samples"), ("nearest training image", "nearest train")]
            rows = [(words, tiles(e.pictures[name][:8], 8)) for words, name in pairs]
            figures.append(Figure(e.subject.name, rows=rows, width="half"))
    text = [
        "The samples that are closest to a training image, each above that image. If the model copies training "
        f"images, the copies are here. The lower rows {LICENCE}"
    ]
    return Section("Nearest training images", text, _wide_if_alone(figures), wide=True) if figures else None


def _single(evaluations: Sequence[Evaluation]) -> Section | None:
    drawn = [(e, [(name, tiles(images, 8)) for name, images in extremes(e)]) for e in evaluations]
    figures = [Figure(e.subject.name, rows=rows, width="half") for e, rows in drawn if rows]
    text = ["The samples with the lowest and with the highest realism, the most extreme ones first."]
    return Section("Single samples", text, _wide_if_alone(figures), wide=True) if figures else None


def _wide_if_alone(figures: Sequence[Figure]) -> Sequence[Figure]:
    return [replace(figures[0], width="full")] if len(figures) == 1 else figures


def _quality_and_cost(evaluations: Sequence[Evaluation], metrics: Sequence[Column]) -> Section | None:
    names = [e.subject.name for e in evaluations]
    figures = []
    for quality, cost in trade_offs(metrics):
        with drawn_in(INK):
            drawing = markup(plot(names, quality, cost, INK))
        corner = better_corner(quality, cost)
        title = f"{quality.title} and {cost.title}."
        figures.append(Figure(title, f"Better models are closer to the {corner} corner.", svg=drawing, width="half"))
    return Section("Quality and cost", figures=figures) if figures else None


def _protocol(metrics: Sequence[Column]) -> Section | None:
    """Build a table with one row per field. If metrics differ in a field, each value names its
    metrics."""
    measured = [column for column in metrics if column.name != "training-minutes"]
    rows = []
    for field in fields(Protocol):
        values: dict[str, list[str]] = {}
        for column in measured:
            if (value := getattr(column.first.protocol, field.name)) is not None:
                values.setdefault(f"{value:,}" if isinstance(value, int) else value, []).append(column.name)
        shared = len(values) == 1
        words = [value if shared else f"{value} ({', '.join(names)})" for value, names in values.items()]
        rows += [[FIELDS.get(field.name, field.name), "; ".join(words)]] if words else []
    text = [
        "Everything that the values depend on in addition to what was measured. It is the same for every row of the "
        "tables above."
    ]
    return Section("Protocol", text, table=[["", "value"], *rows]) if rows else None


def _definitions(evaluations: Sequence[Evaluation], metrics: Sequence[Column]) -> Section | None:
    rows = []
    for c in metrics:
        unit = f" ({c.first.unit})" if c.first.unit else ""
        rows.append([c.name + unit, c.first.better, definition(evaluations, c)])
    return Section("Definitions of the metrics", table=[["metric", "better", "definition"], *rows]) if rows else None


def _absent(evaluations: Sequence[Evaluation]) -> Section | None:
    subjects: dict[tuple[str, str], list[str]] = {}
    for e in evaluations:
        for measure, why in e.absent.items():
            subjects.setdefault((measure, why), []).append(e.subject.name)
    rows = [
        [measure, "all" if len(names) == len(evaluations) > 1 else ", ".join(names), why]
        for (measure, why), names in subjects.items()
    ]
    return Section("Not measured", table=[["metric", "subject", "reason"], *rows]) if rows else None


def _subjects(evaluations: Sequence[Evaluation]) -> Section:
    head = ["subject", "kind", "weights", "seed", "sampling options", "choice", "training", "notes", "fingerprint"]
    rows = []
    for e in evaluations:
        s = e.subject
        options = ", ".join(f"{name} {value}" for name, value in s.options.items())
        training = ", ".join(f"{amount(value)} {name}" for name, value in s.training.items())
        seed = "" if s.seed is None else str(s.seed)
        rows.append([s.name, s.kind, s.weights, seed, options, s.choice, training, "; ".join(s.notes), s.fingerprint])
    known = [i for i, words in enumerate(zip(*rows, strict=True)) if any(words)]
    return Section("Subjects", table=[[row[i] for i in known] for row in [head, *rows]])


def _versions(evaluations: Sequence[Evaluation]) -> Section:
    """Build a table of the versions that measured the subjects. Subjects with the same versions
    share a row."""
    names = list(dict.fromkeys(name for e in evaluations for name in e.made))
    alike: dict[tuple[str, ...], list[str]] = {}
    for e in evaluations:
        alike.setdefault(tuple(e.made.get(name, "") for name in names), []).append(e.subject.name)
    rows = [["all" if len(of) == len(evaluations) else ", ".join(of), *values] for values, of in alike.items()]
    return Section("Versions", table=[["subjects", *names], *rows])
