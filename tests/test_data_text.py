"""Captions as a column of packed data, and the view for DataLoader."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from genmodels.conditions import Text
from genmodels.data import export, load_packed, pack, save_sheet
from genmodels.data.batches import BatchReader
from genmodels.data.captions import CAPTIONED, held_out
from genmodels.data.captions import caption as caption_of
from genmodels.data.columns import uncaptioned
from genmodels.data.directory import save_labels
from genmodels.data.folder import folder_source
from genmodels.data.packed import COLUMNS, Packed
from genmodels.training.checks import check_captions

N, SIZE, LENGTH = 24, 8, 12


def caption(row: int, number: int) -> str:
    return f"{row}.{number}"


def make_data(text: bool = True) -> Packed:
    """Image i is filled with the value i. Row i has i % 4 captions."""
    images = np.arange(N, dtype=np.uint8)[:, None, None, None].repeat(SIZE, 1).repeat(SIZE, 2).repeat(3, 3)
    captions = [tuple(caption(i, k) for k in range(i % 4)) for i in range(N)]
    return Packed(
        images=images,
        attributes=(np.arange(N)[:, None] % 3 - 1).astype(np.int8),
        attribute_names=("A",),
        names=[f"{i}.png" for i in range(N)],
        splits=np.repeat(np.array([0, 1], np.uint8), [N - 4, 4]),
        identities=np.arange(N, dtype=np.int32) * 10,
        text=captions if text else None,
    )


def write_tree(root: Path) -> Path:
    """Write twelve images: image 3 without caption, the others with one or two, some accented."""
    root.mkdir()
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption"])
        for i in range(12):
            Image.new("RGB", (20, 20), (i * 20, 0, 0)).save(root / f"{i:02d}.png")
            if i != 3:
                rows.writerow([f"{i:02d}.png", f'a "face", number {i}'])
        for i in range(0, 12, 2):
            rows.writerow([f"{i:02d}.png", f"un visage âgé de {i} ans\nsur deux lignes"])
    return root


def expected_captions(name: str) -> tuple[str, ...]:
    i = int(name[:2])
    first = () if i == 3 else (f'a "face", number {i}',)
    return first if i % 2 else (*first, f"un visage âgé de {i} ans\nsur deux lignes")


def code_points(captions: Sequence[str]) -> Text:
    """Tokenize captions into the code points of their characters."""
    ids = torch.zeros(len(captions), LENGTH, dtype=torch.int64)
    for row, sentence in zip(ids, captions, strict=True):
        row[: len(sentence)] = torch.tensor([ord(character) for character in sentence])
    return Text(ids, ids > 0)


def sentences(text: Text) -> list[str]:
    return ["".join(chr(i) for i in ids[mask]) for ids, mask in zip(text.ids, text.mask, strict=True)]


def test_every_field_is_a_column_or_describes_the_whole() -> None:
    fields = {field.name for field in dataclasses.fields(Packed)}
    assert fields - set(COLUMNS) == {"attribute_names", "class_names", "manifest", "origin"}
    assert set(COLUMNS) <= fields


def test_text_stays_with_its_images_in_splits_and_selections() -> None:
    data = dataclasses.replace(make_data(), latents=np.arange(N)[:, None], features=np.arange(N)[:, None])
    for part in (data.split("valid"), data.take(slice(3, 9)), data.take(np.array([20, 2, 7]))):
        rows = part.images[:, 0, 0, 0].astype(int)
        assert part.text is not None and part.identities is not None
        assert part.latents is not None and part.features is not None
        assert list(part.text) == [tuple(caption(i, k) for k in range(i % 4)) for i in rows]
        assert list(part.names) == [f"{i}.png" for i in rows]
        assert part.identities.tolist() == (rows * 10).tolist()
        assert part.latents[:, 0].tolist() == part.features[:, 0].tolist() == rows.tolist()
    assert data.with_attributes([]).text is data.text
    assert make_data(text=False).take(slice(3, 9)).text is None


def test_the_fingerprint_includes_text_and_is_unchanged_without_it() -> None:
    data, without = make_data(), make_data(text=False)
    assert without.fingerprint == "3d401275a4c0bd61"  # as before data could have text
    assert data.fingerprint not in (without.fingerprint, data.split("train").fingerprint)
    changed = dataclasses.replace(data, text=[*list(data.text or ())[:-1], ("another",)])
    assert changed.fingerprint != data.fingerprint


def test_captions_of_a_folder_are_packed_exported_and_read_again(tmp_path: Path) -> None:
    first = load_packed(pack("folder", write_tree(tmp_path / "tree"), tmp_path / "a", 16))
    assert first.text is not None
    assert list(first.text) == [expected_captions(name) for name in first.names]
    assert first.describe().endswith("0 attributes, 17 captions")
    assert set(first.manifest["checksums"]) == {
        *("images.npy", "attributes.npy", "splits.npy", "names.bin", "names.offsets.npy"),
        *("text.bin", "text.offsets.npy", "text.rows.npy"),
    }
    again = load_packed(pack("folder", export(first, tmp_path / "small.zip"), tmp_path / "b", 16))
    assert again.text is not None
    assert list(again.text) == list(first.text)


def test_data_whose_images_have_no_caption_are_exported_without_captions(tmp_path: Path) -> None:
    first = load_packed(pack("folder", write_tree(tmp_path / "tree"), tmp_path / "a", 16))
    assert first.text is not None
    uncaptioned = first.take(np.flatnonzero([not row for row in first.text]))
    again = load_packed(pack("folder", export(uncaptioned, tmp_path / "small.zip"), tmp_path / "b", 16))
    assert len(again) == 1 and again.text is None


def test_a_pack_without_captions_has_no_text_file(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    (tree / "captions.csv").unlink()
    packed = load_packed(pack("folder", tree, tmp_path / "a", 16))
    assert packed.text is None
    assert not list((tmp_path / "a").glob("text*"))
    assert packed.describe().endswith("0 attributes")


def test_damaged_or_missing_text_is_refused(tmp_path: Path) -> None:
    folder = pack("folder", write_tree(tmp_path / "tree"), tmp_path / "a", 16)
    content = (folder / "text.bin").read_bytes()
    (folder / "text.bin").write_bytes(content.replace(b"number 5", b"number 6"))
    with pytest.raises(ValueError, match=r"text\.bin is missing or does not match the manifest.*pack again"):
        load_packed(folder)
    (folder / "text.bin").unlink()
    with pytest.raises(ValueError, match=r"text\.bin is missing"):
        load_packed(folder)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\n00.png,a face\n", "expected the columns file and caption"),
        ("file,caption\n99.png,a face\n", "1 of 1 rows have no file .such as 99.png. and 12 of 12 files have no row"),
        ("file,caption\n00.png,a face, smiling\n", "line 2: 3 columns, the header has 2"),
        ("file,caption\n00.png,a face\n99.png,a man\n", "1 of 2 rows have no file .such as 99.png."),
        ("file,caption\n00.png,a face\n01.png,  \n", "line 3: the caption is empty: write one, or remove the row"),
        ("", "expected a header line"),
    ],
)
def test_malformed_captions_are_refused(tmp_path: Path, table: str, message: str) -> None:
    tree = write_tree(tmp_path / "tree")
    (tree / "captions.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as caught:
        folder_source(tree)
    assert "captions.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_changed_captions_are_packed_again(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    before = folder_source(tree).stamp
    (tree / "captions.csv").write_text("file,caption\n00.png,a face\n")
    assert folder_source(tree).stamp != before


def test_a_saved_column_comes_back(tmp_path: Path) -> None:
    data = make_data()
    np.save(tmp_path / "images.npy", data.images)
    columns = {name: getattr(data, name) for name in ("attributes", "names", "splits", "identities", "text")}
    save_labels(tmp_path, {"source": "test", "size": SIZE, "attributes": ["A"]}, **columns)
    loaded = load_packed(tmp_path)
    assert loaded.text is not None
    assert list(loaded.text) == list(data.text or ())


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 3), (2, 2)])
def test_batches_have_one_caption_per_image_whatever_the_processes(world_size: int, accumulate: int) -> None:
    data = make_data()
    (whole,) = BatchReader(data, 12, seed=1, tokenize=code_points).read(3, 0)
    assert whole.condition.text is not None
    rows = ((whole.images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()
    drawn = sentences(whole.condition.text)
    assert all(
        sentence in data.text[row] if row % 4 else sentence == ""  # type: ignore[index]
        for row, sentence in zip(rows, drawn, strict=True)
    )
    parts = [
        part.condition.text
        for rank in range(world_size)
        for part in BatchReader(
            data, 12, 1, rank=rank, world_size=world_size, accumulate=accumulate, tokenize=code_points
        ).read(3, 0)
    ]
    assert [sentence for text in parts if text is not None for sentence in sentences(text)] == drawn


def test_captions_are_drawn_anew_at_each_step_and_evenly() -> None:
    data = make_data().take(np.array([3]))  # one image with three captions
    reader = BatchReader(data, 60, seed=0, tokenize=code_points)
    texts = [reader.read(step, 0)[0].condition.text for step in range(5)]
    drawn = [sentence for text in texts if text is not None for sentence in sentences(text)]
    counts = [drawn.count(caption(3, k)) for k in range(3)]
    assert sum(counts) == 300 and min(counts) > 75
    assert drawn[:60] != drawn[60:120]


def test_text_reaches_a_batch_only_if_it_is_tokenized() -> None:
    assert BatchReader(make_data(), 4, seed=0).read(0, 0)[0].condition.text is None
    assert BatchReader(make_data(text=False), 4, seed=0, tokenize=code_points).read(0, 0)[0].condition.text is None


def captionable() -> Packed:
    """Return images with attributes that the grammar knows, and without stored captions."""
    values = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (N, len(CAPTIONED)))
    return dataclasses.replace(make_data(text=False), attributes=values, attribute_names=CAPTIONED)


def kept(captions: Sequence[str]) -> Text:
    """Tokenize captions into code points without a limit of their length."""
    ids = torch.zeros(len(captions), 400, dtype=torch.int64)
    for row, sentence in zip(ids, captions, strict=True):
        row[: len(sentence)] = torch.tensor([ord(character) for character in sentence])
    return Text(ids, ids > 0)


def test_captions_are_written_from_attributes_and_new_in_every_epoch() -> None:
    data = captionable()
    read = [BatchReader(data, N, seed=1, tokenize=kept).read(step, 0)[0] for step in range(2)]
    drawn = []
    for batch in read:
        assert batch.condition.text is not None
        rows = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()
        texts = sentences(batch.condition.text)
        for row, seed, text in zip(rows, batch.noise.seeds, texts, strict=True):
            values = dict(zip(CAPTIONED, data.attributes[row].tolist(), strict=True))
            assert text == caption_of(values, seed=1, index=row, view=seed)
            assert held_out(text) == ()
        drawn.append(dict(zip(rows, texts, strict=True)))
    assert sum(drawn[0][row] != drawn[1][row] for row in range(N)) > N / 2
    # The attributes of the condition may be fewer, and the captions are the same.
    (batch,) = BatchReader(data, N, seed=1, tokenize=kept, attributes=["Male"]).read(0, 0)
    assert batch.condition.attributes is not None and batch.condition.attributes.shape == (N, 1)
    assert batch.condition.text is not None and torch.equal(batch.condition.text.ids, read[0].condition.text.ids)
    parts = [BatchReader(data, N, 1, rank=rank, world_size=2, tokenize=kept).read(0, 0)[0] for rank in range(2)]
    texts = [text for part in parts if part.condition.text is not None for text in sentences(part.condition.text)]
    assert texts == sentences(read[0].condition.text)


def test_a_mirrored_image_has_the_same_caption() -> None:
    data = captionable()
    for flip in (True, False):
        for text in sentences(BatchReader(data, N, seed=1, flip=flip, tokenize=kept).read(0, 0)[0].condition.text):
            assert not {"left", "right"} & set(text.lower().split())


def test_stored_captions_come_before_written_ones() -> None:
    stored = dataclasses.replace(captionable(), text=[("a face",)] * N)
    (batch,) = BatchReader(stored, 4, seed=0, tokenize=code_points).read(0, 0)
    assert batch.condition.text is not None and set(sentences(batch.condition.text)) == {"a face"}


def test_images_without_captions_are_refused_before_training(tmp_path: Path) -> None:
    check_captions(captionable())
    complete = dataclasses.replace(make_data(), text=[("a face",)] * (N - 4) + [()] * 4)
    check_captions(complete)  # images of other splits need none
    with pytest.raises(ValueError, match=r"5 of 20 training images of images have no caption, such as 0\.png"):
        check_captions(make_data())
    with pytest.raises(ValueError, match="has neither captions nor attributes that captions can be written from"):
        check_captions(make_data(text=False))
    packed = load_packed(pack("folder", write_tree(tmp_path / "tree"), tmp_path / "a", 16))
    assert packed.text is not None
    assert uncaptioned(packed.text).tolist() == uncaptioned(list(packed.text)).tolist()
    assert [packed.names[i] for i in uncaptioned(packed.text)] == ["03.png"]
    assert uncaptioned(packed.take(np.array([], np.int64)).text).tolist() == []


def test_a_sheet_shows_captions(tmp_path: Path) -> None:
    sheets = [
        Image.open(save_sheet(data, tmp_path / f"{i}.png", 4, captioned=captioned))
        for i, (data, captioned) in enumerate([(captionable(), True), (captionable(), False), (make_data(), True)])
    ]
    assert sheets[0].size[0] == sheets[1].size[0]
    assert sheets[0].tobytes() != sheets[1].tobytes() != sheets[2].tobytes()
    with pytest.raises(ValueError, match="neither captions nor attributes"):
        save_sheet(make_data(text=False), tmp_path / "none.png", 4, captioned=True)


def test_a_loader_reads_images_and_columns() -> None:
    data = make_data()
    loader = DataLoader(data.dataset(), batch_size=10, shuffle=False)
    batches = list(loader)
    assert [len(batch["image"]) for batch in batches] == [10, 10, 4]
    images = torch.cat([batch["image"] for batch in batches])
    assert images.shape == (N, 3, SIZE, SIZE) and images.dtype == torch.float32
    torch.testing.assert_close(images[:, 0, 0, 0], torch.arange(N) / 127.5 - 1, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([batch["attributes"] for batch in batches])[:, 0], torch.arange(N) % 3 - 1.0)
    assert torch.cat([batch["identity"] for batch in batches]).tolist() == [i * 10 for i in range(N)]
    assert [name for batch in batches for name in batch["name"]] == list(data.names)
    texts = [text for batch in batches for text in batch["text"]]
    assert all(text in captions if captions else text == "" for text, captions in zip(texts, data.text, strict=True))


def test_a_loader_applies_the_transform_and_has_only_the_columns_that_exist() -> None:
    item = make_data(text=False).dataset(lambda image: image.flip(2).mul(2))[5]
    assert sorted(item) == ["attributes", "identity", "image", "name"]
    torch.testing.assert_close(item["image"], torch.full((3, SIZE, SIZE), 2 * (5 / 127.5 - 1)))
    with pytest.raises(IndexError, match="index 24 is out of range for 24 images"):
        make_data().dataset()[24]


def test_a_loader_with_workers_reads_a_pack(tmp_path: Path) -> None:
    packed = load_packed(pack("folder", write_tree(tmp_path / "tree"), tmp_path / "a", 16))
    loader = DataLoader(packed.dataset(), batch_size=5, num_workers=1)
    images = torch.cat([batch["image"] for batch in loader])
    expected = torch.from_numpy(np.array(packed.images)).permute(0, 3, 1, 2).double() / 127.5 - 1
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)
