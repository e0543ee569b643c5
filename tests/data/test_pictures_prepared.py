"""Sets with pictures: prepared, cached without them, digested with them, and read again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from PIL import Image
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.data import cache, parts, prepare
from counterpoint.data.batching import KeyedPairs
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import RAW, to_pair, trained_columns
from counterpoint.data.pair_digest import pairs_digest
from counterpoint.data.pictures import PictureRules
from counterpoint.data.prepare import iter_pairs
from counterpoint.data.row_tokens import tokens_of_row
from counterpoint.data.sources import load
from counterpoint.doctor.of_data import of_data
from counterpoint.doctor.survey import survey
from counterpoint.errors import DataError
from counterpoint.records import TokenPair
from tests.pictures_on_the_spot import TEMPLATE, SeeingEncoder, drawn, packed


def small(n: int) -> Any:
    """The n-th of some pictures, all of them different."""
    return drawn(4 + n, 5, red=n)


def png(n: int) -> bytes:
    return packed(small(n))


def rows(pictures: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Six rows of 0, 1, 2, 0, 1, 2 pictures."""
    return [
        {
            "prompt": f"<image>{n}" * (n % 3) or "none",
            "chosen": f"yes {n}",
            "rejected": f"no {n}",
            "images": [pictures(10 * n + k) for k in range(n % 3)],
        }
        for n in range(6)
    ]


@pytest.fixture
def seeing(chatml_tokenizer: PreTrainedTokenizerBase) -> SeeingEncoder:
    tokenizer = copy.deepcopy(chatml_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return SeeingEncoder(tokenizer)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    home = tmp_path / "rows"
    home.mkdir()
    for n in range(60):
        (home / f"{n}.png").write_bytes(png(n))
    path = home / "rows.jsonl"
    lines = [json.dumps(row) for row in rows(lambda n: f"{n}.png")]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def of_features(file: Path) -> Dataset:
    text = {name: Value("string") for name in ("prompt", "chosen", "rejected")}
    features = Features({**text, "images": List(datasets.Image())})
    return Dataset.from_list(rows(lambda n: {"bytes": png(n), "path": None}), features)


def messages(n: int) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": small(10 * n + k)} for k in range(n % 3)]
    words = {"type": "text", "text": str(n) if parts else "none"}
    return [{"role": "user", "content": [*parts, words]}]


SETS: dict[str, Callable[[Path], Any]] = {
    "a file": load,
    "a stream": lambda file: load(file, streaming=True),
    "Pillow's in a list": lambda file: rows(small),
    "Pillow's in messages": lambda file: [
        {"prompt": messages(n), "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(6)
    ],
    "a Dataset": of_features,
    "some of a Dataset": lambda file: (
        of_features(file).select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0])
    ),
    "a Dataset as a stream": lambda file: of_features(file).to_iterable_dataset(num_shards=2),
    "a Dataset with a transform": lambda file: of_features(file).with_transform(
        lambda batch: batch
    ),
}


def seen(pairs: list[TokenPair]) -> list[list[bytes]]:
    return [[picture.load().tobytes() for picture in pair.pictures] for pair in pairs]


EXPECTED = [[small(10 * n + k).tobytes() for k in range(n % 3)] for n in range(6)]


@pytest.mark.parametrize("make", SETS.values(), ids=SETS.keys())
def test_a_pair_has_the_pictures_of_its_row_wherever_they_come_from(
    make: Callable[[Path], Any], file: Path, seeing: SeeingEncoder, home: Path
) -> None:
    prepared = prepare.prepare(make(file), seeing)
    pairs = list(iter_pairs(prepared))
    assert seen(pairs) == EXPECTED
    assert [[p.width for p in pair.pictures] for pair in pairs] == [
        [4 + 10 * n + k for k in range(n % 3)] for n in range(6)
    ]
    if isinstance(prepared.pairs, Dataset):
        keyed = KeyedPairs(trained_columns(prepared.pairs), to_pair)
        assert seen(keyed.__getitems__([5, 1])) == [EXPECTED[5], EXPECTED[1]]
        some = prepared.pairs.select([4, 2])
        assert seen([to_pair(row) for row in some]) == [EXPECTED[4], EXPECTED[2]]
        again = list(iter_pairs(prepare.prepare(make(file), seeing)))
        assert seen(again) == EXPECTED


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder."""
    found = tmp_path / "cache"
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(found))
    return found


def test_no_picture_is_kept_in_the_cache(file: Path, seeing: SeeingEncoder, home: Path) -> None:
    prepare.prepare(of_features(file), seeing)
    prepare.prepare(rows(small), seeing)
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert kept
    for n in (10, 20, 21, 40, 50, 51):
        assert png(n) not in kept
        assert small(n).tobytes() not in kept


def digest(source: Any, encoder: SeeingEncoder) -> str:
    prepared = prepare.prepare(source, encoder)
    assert prepared.counts.digest is not None
    found = prepared.counts.digest.hexdigest()
    if isinstance(prepared.pairs, Dataset):
        assert pairs_digest(prepared.pairs) == found
    else:
        list(iter_pairs(prepared))
        found = prepared.counts.digest.hexdigest()
    return found


def test_a_changed_pixel_changes_the_digest_and_an_unchanged_set_is_found_again(
    file: Path, seeing: SeeingEncoder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(load(file), seeing)
    assert digest(load(file, streaming=True), seeing) == before
    encoded: list[int] = []
    real = prepare.encode_rows

    def watched(batch: Any, numbers: list[int], **more: Any) -> Any:
        encoded.extend(numbers)
        return real(batch, numbers, **more)

    monkeypatch.setattr(prepare, "encode_rows", watched)
    assert (digest(load(file), seeing), encoded) == (before, [])
    changed = small(40)
    changed.putpixel((1, 1), (41, 200, 100))
    (file.parent / "40.png").write_bytes(packed(changed))
    after = digest(load(file), seeing)
    assert (after != before, encoded) == (True, [*range(6)])
    assert digest(load(file, streaming=True), seeing) == after
    (file.parent / "40.png").write_bytes(png(40))
    assert digest(load(file), seeing) == before


def test_a_text_s_digest_is_what_it_was_before_there_were_pictures(
    file: Path, seeing: SeeingEncoder, home: Path
) -> None:
    plain = [
        {k: v for k, v in row.items() if k != "images"} | {"prompt": "x"} for row in rows(small)
    ]
    with_column = [row | {"images": []} for row in plain]
    text = TextEncoder(seeing.tokenizer)
    prepared = prepare.prepare(plain, text)
    assert not any("picture" in name or RAW in name for name in prepared.pairs.column_names)
    assert digest(plain, seeing) == prepare.prepare(plain, text).counts.digest.hexdigest()
    assert prepare.prepare(with_column, text).counts.digest.hexdigest() == digest(plain, seeing)


def test_large_sets_are_prepared_in_parts_with_their_pictures(
    file: Path, seeing: SeeingEncoder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(load(file), seeing)
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    for source in (load(file), of_features(file)):
        assert seen(list(iter_pairs(prepare.prepare(source, seeing)))) == EXPECTED
    assert digest(load(file), seeing) == before
    (file.parent / "40.png").write_bytes(png(41))
    assert digest(load(file), seeing) != before


def test_a_bad_picture_is_a_bad_row_that_can_be_dropped(
    file: Path, seeing: SeeingEncoder, home: Path
) -> None:
    (file.parent / "40.png").unlink()
    with pytest.raises(DataError, match=r"^CP229 .*row 4, field images\[0\]: there is no file"):
        prepare.prepare(load(file), seeing)
    for streaming in (False, True):
        prepared = prepare.prepare(
            load(file, streaming=streaming), seeing, PrepareOptions(invalid_rows="drop")
        )
        assert seen(list(iter_pairs(prepared))) == [*EXPECTED[:4], EXPECTED[5]]
        assert prepared.counts.dropped == {"CP229": 1}
    bytes_ = rows(lambda n: png(n) if n != 40 else b"<svg/>")
    prepared = prepare.prepare(bytes_, seeing, PrepareOptions(invalid_rows="drop"))
    assert seen(list(iter_pairs(prepared))) == [*EXPECTED[:4], EXPECTED[5]]


def test_paths_are_looked_up_in_the_data_s_folder_alone(
    file: Path, seeing: SeeingEncoder, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^CP229 .*row 1, field images\[0\]: there is no file"):
        prepare.prepare(raw, seeing)
    monkeypatch.chdir(file.parent)
    assert seen(list(iter_pairs(prepare.prepare(raw, seeing)))) == EXPECTED
    monkeypatch.chdir(tmp_path)
    seeing.rules = PictureRules(str(file.parent))
    assert seen(list(iter_pairs(prepare.prepare(raw, seeing)))) == EXPECTED
    seeing.rules = PictureRules()
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(raw[0]), encoding="utf-8")
    with pytest.raises(DataError, match=r"^CP229 .*no folder of its own.*image_folder"):
        prepare.prepare(load([file, other]), seeing)


def test_lists_of_paths_may_stand_in_csv(file: Path, seeing: SeeingEncoder, home: Path) -> None:
    lines = ["prompt,chosen,rejected,images", "a,yes,no,\"['10.png', '20.png']\"", "b,yes,no,"]
    path = file.parent / "rows.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    pairs = list(iter_pairs(prepare.prepare(load(path), seeing)))
    assert seen(pairs) == [[small(10).tobytes(), small(20).tobytes()], []]
    path.write_text("\n".join([*lines[:1], "a,yes,no,10.png"]), encoding="utf-8")
    assert seen(list(iter_pairs(prepare.prepare(load(path), seeing)))) == [[small(10).tobytes()]]


def test_a_row_s_tokens_are_shown_with_its_pictures_read(file: Path, seeing: SeeingEncoder) -> None:
    raw = rows(lambda n: {"bytes": png(n), "path": None})[1]
    tokens = tokens_of_row(raw, 1, seeing, PrepareOptions().limits)
    assert "[seen]" in "".join(piece.text for piece in tokens.prompt)


def test_a_set_without_a_cache_has_its_pictures(
    file: Path, seeing: SeeingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    assert cache.folder() is None
    prepared = prepare.prepare(load(file), seeing, PrepareOptions(num_proc=2))
    assert seen(list(iter_pairs(prepared))) == EXPECTED


def test_the_doctor_tells_of_pictures(file: Path, seeing: SeeingEncoder, home: Path) -> None:
    (file.parent / "40.png").write_bytes(packed(Image.new("1", (5000, 4000))))
    (file.parent / "20.png").unlink()
    with file.open("a", encoding="utf-8") as lines:
        bad = {"prompt": "<image>", "chosen": "a", "rejected": "b", "images": ["/etc/hostname"]}
        lines.write("\n" + json.dumps(bad) + "\n")
        lines.write(json.dumps(bad | {"images": []}) + "\n")
    found = survey(load(file), seeing, PrepareOptions(), name="train")
    args = CPOConfig(output_dir=str(home), invalid_rows="raise")
    told = {finding.code: finding for finding in of_data(found, args)}
    assert set(told) >= {"CP228", "CP229", "CW230", "CW231"}
    rows_told = {code: list(finding.rows) for code, finding in told.items()}
    assert rows_told["CW230"] == [1, 5]  # five pixels high
    assert rows_told["CW231"] == [4]
    assert rows_told["CP229"] == [2, 6]
    assert rows_told["CP228"] == [7]
    assert found.tokens is not None
    assert all(pair.pictures[0].load() for pair in found.tokens.pairs if pair.pictures)
    lists = survey(rows(small), seeing, PrepareOptions(), name="train")
    assert [pair.pictures[0].load().size for pair in lists.tokens.pairs if pair.pictures]


def test_one_question_about_two_pictures_is_two_prompts(seeing: SeeingEncoder) -> None:
    def asked(number: int, chosen: str, rejected: str) -> dict[str, Any]:
        return {
            "prompt": "<image>Is it red?",
            "chosen": chosen,
            "rejected": rejected,
            "images": [{"bytes": png(number), "path": None}],
        }

    for other, same in ((10, True), (20, False)):
        lists = Dataset.from_list(
            [asked(10, "yes", "no"), asked(other, "yes", "no"), asked(other, "no", "yes")]
        )
        found = survey(lists, seeing, PrepareOptions(), name="train")
        assert found.consistency.prompts == ([1, 2] if same else [2])
        assert found.consistency.duplicates == ([1] if same else [])
        assert found.consistency.contradictions == [2]
    lists = Dataset.from_list([asked(10, "yes", "no"), asked(20, "no", "yes")])
    found = survey(lists, seeing, PrepareOptions(), name="train")
    assert found.consistency.contradictions == found.consistency.prompts == []
