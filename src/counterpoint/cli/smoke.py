"""``counterpoint smoke``: a whole run in miniature, before the real one is begun.

It takes the options of ``train``. Of the model only its configuration and tokenizer are needed,
unless steps of the real one are asked for. Nothing is written but into a folder that vanishes.

Not here: what is tried (``smoke.run``), loading (``parts``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import complain_all, importing, put, quiet_bars, terminal_width
from counterpoint.console.phases import on_stderr, shown_on
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option

if TYPE_CHECKING:
    from counterpoint.options.settings import Request

USAGE = """\
usage: counterpoint smoke [CONFIG.yaml] [--real N] [--option value ...] [--json]

Tries the whole run in miniature, in less than a minute: a tiny twin of the
model (same class, tokenizer and vocabulary; few narrow layers), two dozen of
the run's own rows, its own objective, adapter and precision. Trains, saves,
loads again, resumes, and says what held. Nothing is written to output_dir.
The options are those of counterpoint train; counterpoint train --help lists
them. See docs/smoke.md.

exit codes:
  0    every check that applies holds
  1    a check failed
  2    it cannot be done as asked

options beside those of train:
"""


@dataclass(frozen=True, slots=True)
class SmokeOptions:
    """What the command takes beside ``train``'s options; every field's help is its meaning."""

    real: int = option(
        0,
        "Then also train that many steps of the real model, not kept, and measure "
        "time and memory; 2 is enough for an estimate of the whole run's time.",
    )
    json: bool = option(False, "The report as JSON.")

    def __post_init__(self) -> None:
        """Refuse a number of steps that cannot be meant."""
        if self.real < 0:
            raise ConfigError("CP103", f"real={self.real} should be a number of steps, from 0.")


COMMAND = Command("smoke", USAGE, SmokeOptions, of_train=True)


def smoke(words: list[str]) -> int:
    """Try the run that the words describe, and say on standard output what held.

    Args:
        words: what follows ``counterpoint smoke``.

    Returns:
        0 where every check holds, 1 where one failed.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, others = COMMAND.read(words)
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.options.settings import read_request

    return _try(read_request(others), options)


def _try(request: Request, options: SmokeOptions) -> int:
    from counterpoint.cli.continued import base_named
    from counterpoint.cli.hub import hub_or_cache
    from counterpoint.cli.parts import call, hide_token, load_own_weights, load_parts
    from counterpoint.smoke.report import Check, head
    from counterpoint.smoke.run import Subject, run_smoke

    quiet_bars()
    hide_token(request.config)
    parts = load_parts(request, call, weights=False)
    width = terminal_width()

    def load() -> Any:
        with hub_or_cache([base_named(request.run)]):
            return load_own_weights(request, parts.model_config)

    def begun(twin: str) -> None:
        if not options.json:
            put("\n".join(head(twin, width)))

    def told(check: Check) -> None:
        if not options.json:
            put("\n".join(check.as_lines(width)))

    with shown_on(on_stderr(complain_all)):
        report = run_smoke(
            Subject(
                args=request.config,
                source=base_named(request.run),
                config=parts.model_config,
                tokenizer=parts.tokenizer,
                rows=parts.train_rows,
                peft_config=parts.adapter,
                freeze=request.run.freeze or (),
            ),
            real_steps=options.real,
            load=load,
            begun=begun,
            told=told,
        )
    if options.json:
        put(report.as_json())
        return report.exit_code
    real = [] if report.real is None else ["", *report.real.as_lines(width)]
    put("\n".join([*real, "", report.summary()]))
    return report.exit_code
