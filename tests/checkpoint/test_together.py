"""Ranks read a checkpoint through together: every file once, by one rank, with one verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint import SetupError
from counterpoint.checkpoint import manifest
from counterpoint.checkpoint.manifest import File, digests, read_manifest, seal, verify
from counterpoint.checkpoint.together import shares, writer_of


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 1000)), st.integers(1, 9))
def test_every_file_is_in_one_share_and_shares_differ_by_no_more_than_a_file(sizes, count):
    files = {name: File(size, "") for name, size in sizes.items()}
    dealt = shares(files, count)
    assert len(dealt) == count
    assert sorted(name for share in dealt for name in share) == sorted(files)
    amounts = [sum(file.size for file in share.values()) for share in dealt]
    assert max(amounts) - min(amounts) <= max(sizes.values(), default=0)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rank-12.json", 12),
        ("model/shard-00003-model-00001-of-00002.safetensors", 2),
        ("model.safetensors", 0),
        ("model-00002-of-00003.safetensors", 0),
        ("optimizer.json", 0),
    ],
)
def test_a_files_name_says_which_rank_wrote_it(name: str, rank: int):
    assert writer_of(name) == rank


def test_what_a_rank_has_read_through_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("rank-0.json", "rank-1.json"):
        (tmp_path / name).write_text(name)
    other = digests(tmp_path, ["rank-1.json"])
    read: list[str] = []
    whole = manifest._read_through
    monkeypatch.setattr(manifest, "_read_through", lambda p: read.append(p.name) or whole(p))
    seal(tmp_path, step=1, resumable=True, fingerprint={}, files=other)
    assert read == ["rank-0.json"]
    assert verify(tmp_path).files.keys() == {"rank-0.json", "rank-1.json"}


@pytest.mark.parametrize("seen", [None, "shorter"])
def test_files_of_another_rank_that_are_not_here_are_named(tmp_path: Path, seen: str | None):
    if seen is not None:
        (tmp_path / "rank-1.json").write_text(seen)
    with pytest.raises(SetupError, match=r"^CP525 rank-1\.json was written into .* another rank"):
        seal(
            tmp_path,
            step=1,
            resumable=True,
            fingerprint={},
            files={"rank-1.json": File(99, "")},
        )
    assert not (tmp_path / manifest.MANIFEST).exists()


def test_shards_are_of_a_layout_that_an_earlier_release_refuses(tmp_path: Path):
    for name, layout in (("model.safetensors", 1), (manifest.SHARDS, 2)):
        (tmp_path / name).write_text("{}")
        seal(tmp_path, step=1, resumable=True, fingerprint={})
        assert f'"format": {layout},' in (tmp_path / manifest.MANIFEST).read_text()
        assert name in read_manifest(tmp_path).files
