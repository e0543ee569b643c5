"""``counterpoint init``: a run's file, from a published setting or from another tool's.

Nothing slow is imported for a preset, nothing of another tool is ever executed, and a file is
written whole or not at all.

Not here: the settings (``doctor.presets``), what another tool's options mean here
(``migrate.translation``), how a file is drawn (``migrate.run_file``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.console.manners import complain_all, terminal_width
from counterpoint.doctor.presets import BY_NAME, PRESETS, Preset
from counterpoint.errors import ConfigError
from counterpoint.masking import masked
from counterpoint.migrate.preset_file import lines_of
from counterpoint.migrate.run_file import Line, printable, written
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.runlog import check_writable
from counterpoint.staged import refuse_taken, staged
from counterpoint.wrap import wrap

if TYPE_CHECKING:
    from counterpoint.migrate.draft import Translation

USAGE = """\
usage: counterpoint init --preset NAME --model MODEL --dataset DATA [--out run.yaml]
       counterpoint init --from FILE [--out run.yaml]
       counterpoint init --list

Writes a run's file with the reasons for what it says: a published setting for a
model and a data set, or what another tool's file asks for. Of that file what can
be translated is; what cannot is listed with the reason, at the end of the file
and on standard error. FILE is a script that uses TRL's CPOConfig (it is read, not
run), a YAML or a shell command of TRL, ms-swift or LLaMA-Factory, or a YAML of
Axolotl.

examples:
  counterpoint init --preset simpo-llama3-instruct \\
      --model meta-llama/Meta-Llama-3-8B-Instruct --dataset pairs.jsonl --out run.yaml
  counterpoint init --from train_cpo.py --out run.yaml
  counterpoint doctor run.yaml

options:
"""

STANDARD = "-"
"""The name of standard input and output."""


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What the command takes; every field's help states its meaning."""

    preset: str | None = option(
        None, "Published setting to write; --list shows them, docs/presets.md too."
    )
    from_: str | None = option(None, "File of another tool to translate; -: standard input.")
    model: str | None = option(None, "Model id or folder, in place of the one that FILE names.")
    dataset: list[str] = option([], "Files, a folder or a hub id, in place of what FILE names.")
    out: str = option(STANDARD, "File to write, whole or not at all; -: show it.")
    overwrite: bool = option(False, "Replace the file if it is there already.")
    list_: bool = option(False, "Show the presets, and write nothing.")

    def __post_init__(self) -> None:
        """Refuse what does not say what to write."""
        if self.list_:
            return
        if self.preset is not None and self.from_ is not None:
            raise ConfigError("CP104", "--preset and --from both say what to write; give one.")
        if self.preset is None and self.from_ is None:
            raise ConfigError(
                "CP107", "preset or from is missing: --preset NAME (see --list), or --from FILE."
            )
        if self.preset is None:
            return
        if self.preset not in BY_NAME:
            near = get_close_matches(self.preset, BY_NAME, n=1) or BY_NAME
            raise ConfigError(
                "CP102",
                f"--preset={printable(self.preset)} is no preset; did you mean {next(iter(near))}? "
                "counterpoint init --list shows them.",
            )
        missing = [name for name in ("model", "dataset") if not getattr(self, name)]
        if missing:
            flags = " and ".join(f"--{name}" for name in missing)
            raise ConfigError("CP107", f"{flags} {'is' if len(missing) == 1 else 'are'} missing.")


COMMAND = Command("init", USAGE, InitOptions, takes_words=False)


def init(words: list[str]) -> None:
    """Write the file that a command line asks for.

    Args:
        words: what follows ``counterpoint init``.

    Raises:
        CounterpointError: with the code of what cannot be done; then nothing is written.
    """
    options, _ = COMMAND.read(words)
    if options.list_:
        sys.stdout.write(preset_list(terminal_width()))
        return
    if options.out != STANDARD:
        _check_target(Path(options.out).expanduser(), options)
    if options.preset is not None:
        preset = BY_NAME[options.preset]
        _write(of_preset(preset, options.model, options.dataset), options)
        return
    # slow to import, since it knows every option
    from counterpoint.migrate.translation import translation_of

    made = translation_of(str(options.from_), model=options.model, dataset=options.dataset)
    width = terminal_width()
    remarks = [line for one in made.remarks() for line in wrap(one, width, "", "  ")]
    if remarks:
        complain_all("\n".join(remarks))
    _write(of_translation(made), options)


def of_preset(preset: Preset, model: str | None, dataset: Sequence[str]) -> str:
    """The file of a published setting.

    Args:
        preset: the setting.
        model: what to train.
        dataset: what to train on.
    """
    head = [
        f"{preset.method} as published for {preset.model}: {preset.source}.",
        f"Written by counterpoint init --preset {preset.name}. Before you train: counterpoint "
        "doctor on this file; docs/options.md lists every option.",
    ]
    what = [
        Line("model", model),
        Line("dataset", dataset[0] if len(dataset) == 1 else list(dataset)),
    ]
    return written(head, [*what, *lines_of(preset)])


def of_translation(made: Translation) -> str:
    """The file of what another tool's file asks for.

    Args:
        made: what could be translated, and what could not.
    """
    head = [
        f"Written by counterpoint init --from {made.source}, {made.tool}. What could not be "
        "translated is listed at the end. Before you train: counterpoint doctor on this file.",
    ]
    return written(head, made.lines, made.remarks())


def preset_list(width: int) -> str:
    """Every preset on a few lines.

    Args:
        width: columns to fold at.
    """
    blocks = []
    for preset in PRESETS:
        texts = (f"{preset.method}, {preset.model}", ", ".join(_facts(preset)), preset.source)
        folded = [line for text in texts for line in wrap(text, width, "    ", "    ")]
        blocks.append("\n".join([preset.name, *folded]))
    return "\n".join([*blocks, ""])


def _facts(preset: Preset) -> Iterator[str]:
    yield f"loss_type {preset.loss_type}"
    if preset.beta is not None:
        yield f"beta {preset.beta:g}"
    if preset.ratio is not None:
        yield f"gamma/beta {preset.ratio:g}"
    if preset.alpha:
        yield f"alpha {preset.alpha:g}"
    yield f"cpo_alpha {preset.cpo_alpha:g}"
    yield f"learning rate {preset.learning_rate:g}"
    if preset.adapter:
        yield f"LoRA of rank {preset.lora_r}"
    yield f"{preset.pairs} pairs a step"


def _check_target(out: Path, options: InitOptions) -> None:
    refuse_taken(out, overwrite=options.overwrite)
    check_writable(out.parent)
    source = Path(options.from_ or STANDARD).expanduser()
    if options.from_ and out.exists() and source.exists() and out.samefile(source):
        raise ConfigError("CP104", f"{out} is the file to read; name another one with --out.")


def _write(text: str, options: InitOptions) -> None:
    text = masked(text)
    if options.out == STANDARD:
        # UTF-8 whatever the terminal speaks: the reader of such files takes nothing else
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()
        return
    path = Path(options.out).expanduser()
    with staged(path, overwrite=options.overwrite) as file:
        file.write(text.encode("utf-8"))
    complain_all(f"written to {path}; next: counterpoint doctor {path}")
