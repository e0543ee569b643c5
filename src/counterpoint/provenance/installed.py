"""How this copy of Counterpoint was installed, from what the installer wrote down (PEP 610).

Not here: an install line. No index is known to hold this package, and a package of its name on one
need not be it; a reader is told what ran, and gets it from whoever published it.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from counterpoint.provenance.commit import commit_of

NAME = "counterpoint"


def how_installed() -> str:
    """Words for a sentence: "from a wheel, counterpoint-0.4.0-py3-none-any.whl", for one.

    Neither folders nor addresses are in it, which may be private: the name of an archive, and the
    commit of sources. "" where there is nothing to say: no installer's record, as with
    ``PYTHONPATH``, and an index, whose name the record does not hold.
    """
    here = Path(__file__).resolve().parents[1]
    try:
        distribution = metadata.distribution(NAME)
        record = distribution.read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return _sources(here)
    if record is None:
        return ""
    try:
        said = json.loads(record)
        return _from(said) if isinstance(said, dict) else ""
    except (ValueError, AttributeError):  # no JSON, or parts of another type
        return ""


def _from(record: dict[str, Any]) -> str:
    url = urlsplit(str(record.get("url", "")))
    if "vcs_info" in record:
        return f"from {record['vcs_info'].get('vcs')} commit {record['vcs_info'].get('commit_id')}"
    if "archive_info" in record:
        name = unquote(url.path).rsplit("/", 1)[-1]
        return f"from {'a wheel' if name.endswith('.whl') else 'an archive'}, {name}"
    if "dir_info" in record:
        editable = record["dir_info"].get("editable") is True
        # what was copied when it was installed need not be what lies in its folder now
        return _sources(Path(unquote(url.path))) if editable else "from a folder of its sources"
    return ""


def _sources(folder: Path) -> str:
    commit = commit_of(folder)
    return "from its sources" + (f" at commit {commit}" if commit else "")
