"""``counterpoint.show``: a run's report inside a notebook.

The page is shown in a frame of its own, sandboxed, so that its policy keeps working: its scripts
run, no script of a run's texts does, and neither reaches the notebook around it.

Not here: what the page says (``run_report``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from counterpoint.errors import ConfigError, SetupError
from counterpoint.invocation import installing
from counterpoint.log import logger
from counterpoint.markup import element
from counterpoint.report.drawing import check_bokeh
from counterpoint.report.run_report import report_html
from counterpoint.report.writing import refuse_other_file, write_page
from counterpoint.runlog import REPORT_FILE, Run, read_run

IPYTHON = "ipython>=8"

HEIGHT = 720
"""Of the frame, in pixels."""


def show(run: Any, *, height: int = HEIGHT) -> Path | None:
    """Show the report of a run below the cell of a notebook.

    Args:
        run: the folder of a run, what ``read_run`` gives, or a trainer.
        height: of the frame, in pixels, at least 100.

    Returns:
        None in a notebook. Elsewhere, where nothing can be shown, the path of the page: it is
        written as ``counterpoint report`` writes it, ``report.html`` in the run's folder.

    Raises:
        ConfigError: CP103 for something that is no run, or for another height.
        SetupError: CP502 where IPython or Bokeh is not installed, CP507 where the folder holds no
            run, CP501 or CP506 where the page cannot be written.
    """
    if height < 100:
        raise ConfigError("CP103", f"height={height} should be pixels, at least 100.")
    shell = _shell()
    check_bokeh()
    found = _run_of(run)
    page = report_html(found)
    if shell is None or "text/html" not in shell.display_formatter.active_types:
        path = found.folder / REPORT_FILE
        refuse_other_file(path)
        write_page(path, page)
        logger().info("No notebook is here to show it in; the report is in %s", path)
        return path
    # no allow-same-origin: the page is a stranger to the notebook, whatever a run's texts hold
    frame = element(
        "iframe",
        srcdoc=page,
        sandbox="allow-scripts allow-downloads",
        title=f"Report of {found.folder.name}",
        style=f"width:100%;height:{height}px;border:0",
    )
    importlib.import_module("IPython.display").display(
        {"text/html": str(frame), "text/plain": f"the report of {found.folder}"}, raw=True
    )
    return None


def _shell() -> Any:
    """The IPython shell that this runs in; None outside of one."""
    try:
        return importlib.import_module("IPython").get_ipython()
    except ImportError as error:
        raise SetupError(
            "CP502",
            "counterpoint.show needs the package ipython, which every notebook has and which is "
            f"not installed here: {installing(IPYTHON)}; counterpoint report RUN writes the same "
            "page without it.",
        ) from error


def _run_of(thing: Any) -> Run:
    if isinstance(thing, Run):
        return thing
    folder = getattr(getattr(thing, "args", None), "output_dir", thing)
    if not isinstance(folder, str | Path):
        raise ConfigError(
            "CP103",
            f"show takes the folder of a run, what read_run gives, or a trainer, not a "
            f"{type(thing).__name__}.",
        )
    return read_run(folder)
