"""``counterpoint merge``: an adapter and its base as one model.

Not here: how they are merged and compared (``models.merging``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.console.manners import importing, put, say
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.options.run_options import DTYPES
from counterpoint.staged import refuse_filled
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.models.merging import Merged

USAGE = """\
usage: counterpoint merge ADAPTER --out FOLDER [--dtype float32]

Makes one model of an adapter, or of a run that trained one, and of the base
that it names: a folder with weights, configuration and tokenizer that opens
without PEFT. The adapter stays as it is. What both say is compared before
anything is written: they must agree, in float32 to rounding, and of 16 bits,
where sums of base and adapter are rounded, it is told how far the model moves.

examples:
  counterpoint merge runs/first --out models/first
  counterpoint merge runs/first --out models/first --dtype float32

options:
"""


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """What the command takes beside an adapter; every field's help is its meaning."""

    out: str | None = option(None, "Folder for the model.")
    dtype: str | None = option(
        None,
        "Precision of its weights; auto: as the base's files. null: as the run held it.",
        DTYPES,
    )
    trust_remote_code: bool = option(False, "Run code that comes with the base.")
    allow_pickle: bool = option(False, "Read weights that are pickles; see docs/security.md.")
    overwrite: bool = option(False, "Write into the folder although something is in it.")
    json: bool = option(False, "Say what was written as JSON.")


COMMAND = Command("merge", USAGE, MergeOptions)


def merge(words: list[str]) -> None:
    """Make the one model that a command line asks for.

    Args:
        words: what follows ``counterpoint merge``.

    Raises:
        CounterpointError: CP1xx for words that mean nothing; CP506 for a folder with something in
            it; CP301 and CP307 for what is no adapter or cannot be merged; CP519 for another base.
    """
    options, paths = COMMAND.read(words)
    if len(paths) != 1 or options.out is None:
        raise ConfigError(
            "CP103" if len(paths) > 1 else "CP107",
            "merge takes one adapter and the folder of the model to be: counterpoint merge ADAPTER "
            "--out FOLDER.",
        )
    source, target = paths[0], Path(options.out).expanduser()
    if target.resolve() == Path(source).expanduser().resolve():
        raise ConfigError("CP104", f"{target} is the adapter's own folder; name another one.")
    refuse_filled(target, overwrite=options.overwrite, never="adapter_config.json")
    merged = merge_into(
        target,
        source,
        dtype=options.dtype,
        code=options.trust_remote_code,
        pickle=options.allow_pickle,
    )
    if options.json:
        found = {
            "adapter": source,
            "base": merged.base,
            "to": str(target),
            "dtype": merged.dtype,
            "moved": merged.moved,
            "files": merged.files,
            "bytes": _size(target, merged),
        }
        put(strict_json(found, indent=2))
    else:
        say(merge_in_words(target, source, merged))


def merge_into(
    target: Path, source: str, *, dtype: str | None, code: bool, pickle: bool = False
) -> Merged:
    """Merge an adapter as the run that trained it held its base.

    Args:
        target: folder for the model.
        source: the adapter's folder.
        dtype: precision of the merged weights; None: as the run held them.
        code: whether code that comes with the base may run.
        pickle: whether pickled weights may be opened.

    Raises:
        CounterpointError: as ``merge``.
    """
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.cli.hub import hub_or_cache
        from counterpoint.config import CPOConfig
        from counterpoint.models.adapters import base_of, is_adapter
        from counterpoint.models.merging import merge_adapter
        from counterpoint.options.run_weights import holding_of

    held = holding_of(source)
    asked = {"dtype": dtype or held.get("dtype"), "revision": held.get("revision")}
    args = CPOConfig(
        output_dir=str(target),
        use_cpu=True,
        trust_remote_code=code,
        allow_pickle=pickle,
        model_init_kwargs={name: value for name, value in asked.items() if value is not None},
    )
    with hub_or_cache([base_of(source)] if is_adapter(source) else []):
        return merge_adapter(source, args, target)


def merge_in_words(target: Path, source: str, merged: Merged) -> str:
    """What was written where, in a line."""
    return (
        f"{target}: {source} and its base {merged.base} as one model in {merged.dtype}, "
        f"{_size(target, merged):,} bytes; it says the same to {merged.moved:.1e} nats a token"
    )


def _size(target: Path, merged: Merged) -> int:
    return sum((target / name).stat().st_size for name in merged.files)
