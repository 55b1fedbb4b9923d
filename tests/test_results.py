"""Protocols and scores: comparability, input refused, saving and loading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from genmodels.evaluation.columns import terminal_table
from genmodels.evaluation.protocol import Protocol, check_count, check_equal, code_version, differences
from genmodels.evaluation.results import Evaluation, Score, Subject, comparable, digits, read_evaluation

PROTOCOL = Protocol("celeba", "valid", "178", 64, "lanczos", "0123", 3000, 2500, "faces", "abcd", "bilinear")


def result(name: str = "runs/one", protocol: Protocol = PROTOCOL, machine: str = "this") -> Evaluation:
    scores = {
        "fd-faces": Score(1.25, "lower", "Frechet", protocol, floor=0.5),
        "images-per-second": Score(99.0, "higher", "median", Protocol(machine=machine), "images/s", group="cost"),
    }
    subject = Subject(name, "tiny", "EMA", 3, {"temperature": 0.5}, fingerprint="ff00", training={"minutes": 10.0})
    return Evaluation(subject, scores, {"lpips": "no weights"}, {"code": "1"})


def test_a_protocol_is_small_when_either_side_is() -> None:
    assert not PROTOCOL.small
    assert replace(PROTOCOL, n=2047).small
    assert replace(PROTOCOL, n_reference=2047).small
    assert not replace(PROTOCOL, n=10, extractor=None).small  # a mean over images needs no thousands


def test_equal_protocols_pass_and_others_are_named() -> None:
    check_equal("fd-faces", ["a", "b"], [PROTOCOL, replace(PROTOCOL)])
    other = replace(PROTOCOL, crop="140", n=10_000)
    assert differences(PROTOCOL, other) == {"crop": ("178", "140"), "n": (2500, 10_000)}
    with pytest.raises(ValueError, match=r"fd-faces of a and of c .*crop: 178 and 140; n: 2500 and 10000"):
        check_equal("fd-faces", ["a", "b", "c"], [PROTOCOL, PROTOCOL, other])


def test_another_definition_is_another_protocol() -> None:
    with pytest.raises(ValueError, match="definitions: 1 and 2"):
        check_equal("fd", ["a", "b"], [PROTOCOL, replace(PROTOCOL, definitions=2)])


def test_a_stored_score_of_before_versions_is_read_and_refused_beside_a_new_one(tmp_path: Path) -> None:
    text = json.loads(result().to_json())
    del text["scores"]["fd-faces"]["protocol"]["version"]
    (tmp_path / "old.json").write_text(json.dumps(text))
    old, new = read_evaluation(tmp_path / "old.json"), result("runs/two", replace(PROTOCOL, version=2))
    with pytest.raises(ValueError, match=r"fd-faces of runs/one and of runs/two .*version: None and 2"):
        comparable([old, new])


def test_too_few_images_are_refused() -> None:
    check_count(256, "samples")
    with pytest.raises(ValueError, match="samples: 255 images are too few.* at least 256"):
        check_count(255, "samples")


def test_code_version_sees_the_source() -> None:
    version, _, source = code_version().partition("+")
    assert version[0].isdigit()
    assert len(bytes.fromhex(source)) == 4


def test_json_comes_back(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(result().to_json())
    back = read_evaluation(tmp_path / "a.json")
    assert back.plain() == result().plain()
    assert back.scores["fd-faces"].protocol == PROTOCOL
    assert json.loads(result().to_json())["scores"]["fd-faces"]["protocol"]["crop"] == "178"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ('{"scores": {}}', "was not written by"),
        ('{"format": 1, "subject": {}, "scores": {}, "absent": {}, "made": {}}', "evaluate again"),
        ('{"format": 2, "subject": {"nom": 1}, "scores": {}, "absent": {}, "made": {}}', "unknown setting 'nom'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=reason) as caught:
        read_evaluation(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_distances_of_two_protocols_are_not_put_side_by_side() -> None:
    comparable([result("a"), result("b")])
    with pytest.raises(ValueError, match="fd-faces of a and of b .*size: 64 and 32"):
        comparable([result("a"), result("b", replace(PROTOCOL, size=32))])


def test_speeds_of_two_machines_are_left_out_with_the_reason() -> None:
    one, other = comparable([result("a"), result("b", machine="that")])
    assert set(one.scores) == set(other.scores) == {"fd-faces"}
    assert "that" in other.absent["images-per-second"]
    assert "images-per-second" in result("a").scores  # the originals are left alone


def test_probabilities_of_two_codecs_codes_are_left_out_with_the_reason() -> None:
    def of(codec: str) -> Evaluation:
        score = Score(7.5, "lower", "exact", replace(PROTOCOL, alphabet=codec), "bits/token", group="likelihood")
        return replace(result(codec), scores={"bits-per-token": score})

    assert "bits-per-token" in comparable([of("a"), of("a")])[0].scores
    one, other = comparable([of("a"), of("b")])
    assert not one.scores and not other.scores
    assert other.absent["bits-per-token"] == "of the codes of codec b, others of another codec"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (0.001234, "0.00123"),
        (-4.04e-05, "-4.04e-05"),
        (4.3217, "4.322"),
        (1234.6, "1,235"),
        (2.5e9, "2.5e+09"),
        (0.0, "0"),
        (-12.3456, "-12.35"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_the_table_says_what_is_better_and_marks_small_n() -> None:
    measured = result(protocol=replace(PROTOCOL, n=300))
    table = terminal_table(measured)
    assert list(table.columns[0].cells) == ["fd-faces \u2193 *", "images-per-second \u2191"]
    assert list(table.columns[3].cells) == ["0.5000", ""]
