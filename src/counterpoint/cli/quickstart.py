"""``counterpoint quickstart``: a model trained in a minute, to see what the rest is about.

Not here: the run (``quickstart.run``).
"""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.console.manners import importing
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option

USAGE = """\
usage: counterpoint quickstart [--output_dir DIR] [--seed N] [--encoder_decoder | --vision]

Trains a tiny model, which comes with the package, to translate English number words into German,
or to read the codes on small pictures (--vision): first on the preferred texts alone, then on
preferences, and compares the two. About a minute on two cores; no network, no GPU.

options:
"""


@dataclass(frozen=True, slots=True)
class QuickstartOptions:
    """What the command takes; every field's help is its meaning."""

    output_dir: str = option(
        "counterpoint-quickstart", "Where model and run are written; numbered where that is taken."
    )
    seed: int = option(0, "Seed of the pairs, their order and the held-out numbers, >= 0.")
    encoder_decoder: bool = option(
        False, "Train a small encoder-decoder like mBART, a translator's own kind, not a decoder."
    )
    vision: bool = option(
        False, "Train a small model that sees to read codes on pictures; it needs Pillow."
    )

    def __post_init__(self) -> None:
        """Refuse what is no seed."""
        if self.seed < 0:
            raise ConfigError("CP103", f"seed={self.seed} should be a whole number from 0.")


COMMAND = Command("quickstart", USAGE, QuickstartOptions, takes_words=False)


def quickstart(words: list[str]) -> None:
    """Run the quickstart.

    Args:
        words: what follows ``counterpoint quickstart``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, _ = COMMAND.read(words)
    with importing():
        from counterpoint.quickstart.run import run

    run(
        options.output_dir,
        seed=options.seed,
        encoder_decoder=options.encoder_decoder,
        vision=options.vision,
    )
