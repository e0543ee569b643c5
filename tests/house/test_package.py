"""What is built from the sources: its page, its addresses, what it holds; and the image."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = "https://forge.example/counterpoint"
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
LINK = re.compile(r"\]\(([^)]+)\)")


@pytest.fixture(scope="module", params=["", HOME], ids=["no home", "a home"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution and a wheel of it."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed here")
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("src", "tests", "examples", "scripts", "docs"):
        left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "_site", "*.webp")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    project = folder / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    text, changed = re.subn(r'(?m)^home = ".*"$', f'home = "{request.param}"', text)
    assert changed == 1
    project.write_text(text, encoding="utf-8")
    program = (
        "from setuptools import build_meta; build_meta.build_sdist('dist'); "
        "build_meta.build_wheel('dist')"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=folder, check=True, capture_output=True
    )
    (folder / "dist" / "home").write_text(request.param, encoding="utf-8")
    return folder / "dist"


def metadata_of(built: Path) -> tuple[str, dict[str, list[str]], str]:
    """Home, headers and page."""
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        message = message_from_string(archive.read(name).decode())
    headers = {key: [str(one) for one in message.get_all(key, [])] for key in message}
    return (built / "home").read_text(encoding="utf-8"), headers, str(message.get_payload())


def test_no_link_of_the_page_is_relative_and_each_leads_to_a_file(built: Path) -> None:
    home, _, page = metadata_of(built)
    links = LINK.findall(page)
    assert len(links) == (len(LINK.findall((ROOT / "README.md").read_text())) if home else 0)
    for link in links:
        assert link.startswith(f"{home}/blob/main/")
        path = link.removeprefix(f"{home}/blob/main/").partition("#")[0]
        assert (ROOT / path).is_file(), link


def test_the_addresses_are_those_of_the_home_or_none(built: Path) -> None:
    home, headers, _ = metadata_of(built)
    urls = dict(line.split(", ", 1) for line in headers.get("Project-URL", []))
    assert sorted(urls) == (["Changelog", "Documentation", "Issues", "Source"] if home else [])
    assert all(url.startswith(home) for url in urls.values())
    assert headers["Author"] == ["The Counterpoint authors"]
    assert headers["License-Expression"] == ["Apache-2.0"]


def test_a_source_distribution_holds_what_a_build_needs_and_no_tests(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()} - {""}
    assert set(SOURCES) <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {*SOURCES, "PKG-INFO", "setup.cfg", "src"}


def test_a_wheel_holds_the_package_with_its_data_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = [name for name in names if not name.startswith("counterpoint/")]
    assert all(".dist-info/" in name for name in inside)
    package = ROOT / "src" / "counterpoint"
    wanted = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if name.startswith("counterpoint/")} == wanted


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, comments left out and lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(first, rest) for first, _, rest in (one.partition(" ") for one in joined.split("\n"))]


def test_the_image_is_built_of_files_that_are_there_and_runs_without_root() -> None:
    steps = dockerfile()
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} == known
    [base] = [rest for name, rest in steps if name == "FROM"]
    floor = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    assert f">={base.removeprefix('python:').partition('-')[0]}" == floor
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for name, rest in steps:
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / one).exists() and f"!{one}" in allowed for one in sources)
        if name == "RUN" and "pip install" in rest:
            assert "--no-cache-dir -c requirements/constraints.txt" in rest
    names = [name for name, _ in steps]
    assert names.index("USER") < names.index("ENTRYPOINT")
    words = [json.loads(rest) for name, rest in steps if name in ("ENTRYPOINT", "CMD")]
    assert words == [["counterpoint"], ["quickstart"]]


@pytest.mark.slow
def test_the_image_builds_and_runs_the_quickstart_where_there_is_an_engine() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no docker engine runs here; the Dockerfile is checked by the test above")
    subprocess.run([docker, "build", "--tag", "counterpoint-test", str(ROOT)], check=True)
    done = subprocess.run(
        [docker, "run", "--rm", "counterpoint-test"], capture_output=True, text=True, check=True
    )
    assert "exact match" in done.stdout
