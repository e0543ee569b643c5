"""What is said of how the package was installed, for each thing that installers write."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from counterpoint.provenance.environment import environment
from counterpoint.provenance.installed import how_installed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Installed:
    """A distribution of which only the installer's record is asked."""

    def __init__(self, record: str | None) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"url": "file:///x/a%20b-0.4.0-py3-none-any.whl", "archive_info": {}},
            "from a wheel, a b-0.4.0-py3-none-any.whl",
        ),
        (
            {"url": "https://me:secret@host/x/counterpoint-0.4.0.tar.gz?key=1", "archive_info": {}},
            "from an archive, counterpoint-0.4.0.tar.gz",
        ),
        (
            {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"from git commit {COMMIT}",
        ),
        ({"url": "file:///x/counterpoint", "dir_info": {}}, "from a folder of its sources"),
        ({"url": "file:///gone", "dir_info": {"editable": True}}, "from its sources"),
        (None, ""),  # an index
        ("[]", ""),
        ("{", ""),
        ({"archive_info": {}, "url": 3}, "from an archive, 3"),
        ({"vcs_info": "git", "url": ""}, ""),
    ],
)
def test_it_is_what_the_installer_wrote_without_folders_and_addresses(
    monkeypatch: pytest.MonkeyPatch, record: Any, said: str
) -> None:
    text = record if record is None or isinstance(record, str) else json.dumps(record)
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(text))
    assert how_installed() == said
    assert environment()["installed"] == said


def test_an_editable_folder_is_named_by_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my sources"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text(f"{COMMIT}\n")
    record = json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(record))
    assert how_installed() == f"from its sources at commit {COMMIT}"


def test_what_was_never_installed_runs_from_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Installed:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert how_installed().startswith("from its sources")
