"""Typed values from JSON and YAML: types, limits, and whole numbers with a point in every recipe."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from tiny import TinyRecipe

from genmodels.cli.run_folder import read_recipe, read_subject, read_trained
from genmodels.cli.train import recipes
from genmodels.evaluation.results import read_evaluation
from genmodels.saving import Range, from_dict, from_settings, read_last_line
from genmodels.training.command_line import from_yaml, to_yaml
from genmodels.training.recipe import Recipe, check_recipe


@dataclass(frozen=True)
class Inner:
    depth: Annotated[int, Range(1, 8)]
    widths: Annotated[tuple[int, ...], Range(1, 3)] = (4,)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.1
    path: Path | None = None
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "file: expected a group of settings, got None"),
        ({}, "file has no inner"),
        ({"inner": {}}, "file: inner has no depth"),
        ({"inner": {"depth": 0}}, "file: inner: depth: expected at least 1 and at most 8, got 0"),
        ({"inner": {"depth": 9}}, "at most 8, got 9"),
        ({"inner": {"depth": 10**400}}, "depth: expected a number of at most"),
        ({"inner": {"depth": 1e308}}, "depth: expected a number of at most"),
        ({"inner": {"depth": True}}, "depth: expected a number, got True"),
        ({"inner": {"depth": 1, "widths": []}}, "widths: expected at least 1 and at most 3"),
        ({"inner": {"depth": 1, "widths": [1] * 4}}, "widths: expected at least 1 and at most 3"),
        ({"inner": {"depth": 1, "widths": [1.5]}}, "widths: expected a whole number, got 1.5"),
        ({"inner": {"depth": 1}, "rate": float("nan")}, "rate: expected a finite number, got nan"),
        ({"inner": {"depth": 1}, "rate": 10**400}, "rate: expected a finite number"),
        ({"inner": {"depth": 1}, "path": 3}, "path: expected text, got 3"),
        ({"inner": {"depth": 1}, "path": "a\0b"}, "path: expected text"),
        ({"inner": {"depth": 1}, "names": {"a": 1}}, "names: a: expected text, got 1"),
        ({"inner": {"depth": 1}, "names": []}, "names: expected a group of settings"),
        ({"inner": {"depth": 1}, "pair": [1]}, "pair: expected a list of 2"),
        ({"inner": {"depth": 1}, "pair": [1, 2]}, "pair: expected text, got 2"),
    ],
)
def test_values_of_other_types_are_refused_naming_the_setting(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        from_dict(Outer, value, "file")
    assert len(str(error.value)) < 200


def test_values_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    plain = {
        "inner": {"depth": 2.0, "widths": [1, 2]},
        "rate": 1,
        "path": "~/x",
        "names": {"a": "b"},
        "pair": [2.0, "c"],
    }
    made = from_dict(Outer, plain)
    assert made == Outer(Inner(2, (1, 2)), 1.0, Path("/home/someone/x"), {"a": "b"}, (2, "c"))
    assert type(made.inner.depth) is int and type(made.rate) is float
    assert from_settings(Inner, {"depth": 3, "unknown": 1}, "file") == Inner(3)


def recipe_classes() -> Iterator[Any]:
    for name, path in recipes().items():
        spec = importlib.util.spec_from_file_location(f"recipe_{name}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look up their types
        spec.loader.exec_module(module)
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == spec.name]
        yield from (pytest.param(name, kind, id=name) for kind in own if issubclass(kind, Recipe))


def whole_numbers(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Places of all integers of nested settings, also inside lists."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from whole_numbers(value[key], (*place, key))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield place, value


def with_value(settings: Any, place: tuple[Any, ...], value: Any) -> Any:
    settings = json.loads(json.dumps(settings))
    inner = settings
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return settings


@pytest.mark.parametrize(("name", "kind"), list(recipe_classes()))
def test_whole_numbers_with_a_point_are_integers_in_every_recipe(name: str, kind: Any, tmp_path: Path) -> None:
    recipe = kind(steps=8, sample_every=4, evaluate_every=4, save_every=4)
    settings = yaml.safe_load(to_yaml(recipe, name))
    file = tmp_path / "config.yaml"
    expected = from_yaml(kind, name, _written(file, settings))
    places = list(whole_numbers(settings))
    floats = settings
    for place, value in places:
        floats = with_value(floats, place, float(value))
    read = from_yaml(kind, name, _written(file, floats))
    assert read == expected and yaml.safe_load(to_yaml(read, name)) == settings  # 8 and not 8.0
    typed = [place for place, _ in places if not _is_number(expected, place)]
    assert len(typed) >= (12 if kind.records_model else 11)
    for place in typed:
        with pytest.raises(
            ValueError, match=f"{next(n for n in reversed(place) if isinstance(n, str))}: expected a whole"
        ):
            from_yaml(kind, name, _written(file, with_value(settings, place, 8.5)))


def _written(file: Path, settings: Any) -> Path:
    file.write_text(json.dumps(settings))  # which is YAML too
    return file


def _is_number(value: Any, place: tuple[Any, ...]) -> bool:
    """Whether the setting at a place is a float, whose default was written without a point."""
    for key in place:
        value = value[key] if isinstance(key, int) or isinstance(value, dict) else getattr(value, key)
    return isinstance(value, float)


def test_whole_numbers_with_a_point_are_integers_in_python_too(tmp_path: Path) -> None:
    recipe = check_recipe(Recipe(output=tmp_path, steps=4.0, batch_size=8.0, seed=1.0, ema_snapshots=2.0))  # type: ignore[arg-type]
    values = (recipe.steps, recipe.batch_size, recipe.seed, recipe.ema_snapshots)
    assert values == (4, 8, 1, 2) and all(type(value) is int for value in values)
    with pytest.raises(ValueError, match=r"seed: expected a whole number, got 1\.5"):
        check_recipe(Recipe(output=tmp_path, seed=1.5))  # type: ignore[arg-type]


def test_settings_of_a_model_of_another_class_are_checked_as_they_are(tmp_path: Path) -> None:
    """Such as in a recipe of one family with the config of another, which fit() takes."""
    recipe = check_recipe(replace(TinyRecipe(output=tmp_path), model=Inner(depth=2.0)))  # type: ignore[arg-type]
    assert recipe.model == Inner(depth=2) and type(recipe.model.depth) is int  # type: ignore[comparison-overlap]
    with pytest.raises(ValueError, match=r"model: depth: expected at least 1 and at most 8, got 9"):
        check_recipe(replace(TinyRecipe(output=tmp_path), model=Inner(depth=9)))  # type: ignore[arg-type]


def test_an_alias_bomb_in_the_settings_of_a_run_is_refused(tmp_path: Path) -> None:
    lines = ["family: vae", "a: &a [x, x, x, x, x, x, x, x, x]"]
    names = "abcdefghi"
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    for read in (lambda: read_recipe(str(tmp_path)), lambda: from_yaml(Recipe, "vae", tmp_path / "config.yaml")):
        with pytest.raises(ValueError, match=r"config\.yaml .*aliases"):
            read()


@pytest.mark.parametrize(
    "text", ["data: 3", "root: [a]", "crop: {}", "ema: x", "codec_minutes: null", "fingerprint: 1"]
)
def test_settings_of_a_run_have_types(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml: {text.partition(':')[0]}: expected"):
        read_trained(str(tmp_path))


def test_metrics_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"elapsed": "x", "step": 3, "images": [1], "loss": null, "ok": true}\nnull\n'
    )
    assert read_last_line(tmp_path / "metrics.jsonl") == {"step": 3}
    assert read_subject(str(tmp_path), "vae").training == {"steps": 3}
    assert "metrics.jsonl, line 2 is damaged" in capsys.readouterr().err


def test_a_number_that_is_not_finite_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "score.json"
    for text in ('{"format": 2, "scores": {"fd": {"value": NaN}}}', '{"a": 1e999}', "[" * 10_000):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"score\.json is not JSON"):
            read_evaluation(file)


@pytest.mark.parametrize(
    "change",
    [{"scores": []}, {"scores": {"a": 1}}, {"subject": None}, {"absent": {"a": 1}}, {"made": 0}, {"format": []}],
)
def test_evaluations_have_types(change: dict[str, Any], tmp_path: Path) -> None:
    whole = {"format": 2, "subject": {"name": "a", "kind": "vae"}, "scores": {}, "absent": {}, "made": {}}
    file = tmp_path / "score.json"
    file.write_text(json.dumps(whole))
    assert read_evaluation(file).subject.name == "a"
    file.write_text(json.dumps(whole | change))
    with pytest.raises(ValueError, match=r"score\.json"):
        read_evaluation(file)
