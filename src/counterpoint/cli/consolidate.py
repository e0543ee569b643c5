"""``counterpoint consolidate``: a whole model of a checkpoint, to be opened by other tools.

Not here: how it is made (``checkpoint.consolidate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from counterpoint.console.manners import importing, put, say
from counterpoint.console.phases import phase
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.staged import refuse_filled
from counterpoint.strict import strict_json

USAGE = """\
usage: counterpoint consolidate RUN_OR_CHECKPOINT [--to FOLDER]

Makes a whole model of a checkpoint that several ranks have written in parts:
a folder with weights, configuration and tokenizer, or the adapter, that plain
transformers and PEFT open. Of a run the newest checkpoint is taken. Every file
is verified first. Tensors are copied one by one, so that memory stays small.
A checkpoint that was written whole is copied without the run's state.

examples:
  counterpoint consolidate runs/first
  counterpoint consolidate runs/first/checkpoint-200 --to models/first

options:
"""


@dataclass(frozen=True, slots=True)
class ConsolidateOptions:
    """What the command takes beside a path; every field's help is its meaning."""

    to: str | None = option(None, "Folder for the model. null: consolidated-N beside checkpoint-N.")
    overwrite: bool = option(False, "Write into the folder although something is in it.")
    json: bool = option(False, "Say what was written as JSON.")


COMMAND = Command("consolidate", USAGE, ConsolidateOptions)


def consolidate(words: list[str]) -> None:
    """Make the whole model that a command line asks for.

    Args:
        words: what follows ``counterpoint consolidate``.

    Raises:
        CounterpointError: CP1xx for words that mean nothing; CP506 for a folder with something in
            it; CP507 or CP511 for one that holds no checkpoint; CP512, CP521 or CP524 for a
            checkpoint that is not as it was written.
    """
    options, paths = COMMAND.read(words)
    if len(paths) != 1:
        raise ConfigError(
            "CP103" if paths else "CP107",
            f"consolidate takes one run or checkpoint, not {len(paths)}: counterpoint consolidate "
            "RUN_OR_CHECKPOINT.",
        )
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.checkpoint import consolidate as whole

    with phase("verifying the checkpoint"):
        checkpoint, manifest = whole.find_whole(Path(paths[0]).expanduser())
    beside = checkpoint.resolve().with_name(f"consolidated-{manifest.step}")
    target = beside if options.to is None else Path(options.to).expanduser()
    if target.resolve().is_relative_to(checkpoint.resolve()):
        raise ConfigError("CP104", f"{target} lies in the checkpoint; name another one with --to.")
    # transformers puts an adapter on any model that lies beside it
    kinds = ("adapter_config.json", "config.json")
    never = next((name for name in kinds if name not in manifest.files), "")
    refuse_filled(target, overwrite=options.overwrite, never=never)
    with phase(f"writing the whole model of {checkpoint.name}"):
        files = whole.consolidate(checkpoint, manifest.files, target)
    size = sum((target / name).stat().st_size for name in files)
    if options.json:
        found = {"checkpoint": str(checkpoint), "to": str(target), "files": files, "bytes": size}
        put(strict_json(found, indent=2))
    else:
        say(f"{target}: the model after step {manifest.step:,}, {size:,} bytes")
