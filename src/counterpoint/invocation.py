"""How a user has to call Counterpoint here, so that a command that is printed runs as printed.

Texts say ``counterpoint train``. Where that word starts nothing in the user's shell, or another
installation, what is printed has the path of this one's script instead, or
``python -m counterpoint``. Packages are installed by requirement, with the Python that runs.

Not here: files and pages, which may be read on another machine and keep the plain word.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

NAME = "counterpoint"

COMMANDS = (
    *("train", "doctor", "plan", "smoke", "evaluate", "tokens", "init", "sample", "pairs", "diff"),
    *("replay", "report", "compare", "watch", "quickstart", "completion", "consolidate", "merge"),
    "sweep",
    "chat",
    *("score", "trace"),
    "loop",
)
"""Every subcommand."""

EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "peft": "peft>=0.18",
        "report": "bokeh>=3.9",
        "quantized": "bitsandbytes>=0.50",
        "ray": "ray[train]>=2.60",
        "torchao": "torchao>=0.18",
        "evaluate": "sacrebleu>=2.4",
        "translation": "sentencepiece>=0.2 py3langid>=0.4",
        "gguf": "gguf>=0.17",
        "endpoint": "httpx2>=2.0",
        "sweep": "optuna>=4.5",
        "vision": "pillow>=11.3 torchvision>=0.25",
    }
)
"""What each extra of ``pyproject.toml`` installs."""

_CALL = re.compile(rf"(?<!-m )(?<![\w./\\-]){NAME}(?= (?:{'|'.join(COMMANDS)}|--help|--version)\b)")


def command() -> str:
    """The words that a shell needs for this very command, quoted; ``counterpoint`` if it does."""
    scripts = [path for path in _scripts() if path.is_file()]
    on_path = shutil.which(NAME)
    if on_path is not None and any(_same(Path(on_path), path) for path in scripts):
        return NAME
    if scripts:
        return shlex.quote(_short(scripts[0]))
    return f"{python()} -m {NAME}"


def python() -> str:
    """The words that a shell needs for the Python that runs, quoted."""
    for name in ("python", "python3"):
        found = shutil.which(name)
        # not samefile: the Python of a virtual environment is a link to that of the system
        if found is not None and os.path.abspath(found) == os.path.abspath(sys.executable):
            return name
    return shlex.quote(_short(Path(sys.executable)))


def runnable(text: str) -> str:
    """A text whose commands can be pasted into the user's shell.

    Args:
        text: with commands as ``counterpoint train ...``.
    """
    if NAME not in text:
        return text
    here = command()
    return text if here == NAME else _CALL.sub(lambda _: here, text)


def installing(*requirements: str) -> str:
    """A command that installs packages where this Python finds them.

    Never by the name of an extra: the package of that name on an index need not be this one.

    Args:
        requirements: such as "bokeh>=3.9"; several may stand in one, with spaces between them.
    """
    wanted = " ".join(shlex.quote(one) for text in requirements for one in text.split())
    if not _has_pip() and shutil.which("uv") is not None:
        return f"uv pip install --python {python()} {wanted}"
    return f"{python()} -m pip install {wanted}"


def _has_pip() -> bool:
    """Read from its metadata: to look for the module alone makes setuptools throw out distutils."""
    try:
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return True


def _scripts() -> Iterator[Path]:
    """Where this installation's script may lie, the likeliest first."""
    called = Path(sys.argv[0]) if sys.argv else Path()
    if called.stem == NAME and called.suffix in ("", ".exe"):
        yield called.absolute()
    ending = ".exe" if os.name == "nt" else ""
    yield Path(sys.executable).parent / f"{NAME}{ending}"
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        yield Path(sysconfig.get_path("scripts", scheme)) / f"{NAME}{ending}"


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _short(path: Path) -> str:
    """A path as seen from the working folder, if it lies below that."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path.absolute())
