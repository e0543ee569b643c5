"""``counterpoint plan``: what a run needs in memory, before a weight is loaded.

It takes the options of ``train`` and needs data, a tokenizer and the model's configuration, but
no weights and none of the memory that it plans for.

Not here: the arithmetic (``planner``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import importing, put, quiet_bars
from counterpoint.console.phases import phase
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.options.settings import Request
    from counterpoint.planner.shapes import Lengths

USAGE = """\
usage: counterpoint plan [CONFIG.yaml] [--memory 24GiB] [--ranks N] [--json]
                         [--option value ...]

Says what a run needs in memory, by what it is needed for; how many tokens a
micro-batch may hold; every way to cut a step of the wanted pairs; and, where
it does not fit, what to turn on, cheapest first. Takes the options of
counterpoint train; needs data, tokenizer and config.json, no weights.

examples:
  counterpoint plan run.yaml --memory 24GiB --ranks 8
  counterpoint plan run.yaml --memory 80GB --device cuda --pairs 128 --json

exit codes:
  0    it fits, cut into micro-batches as small as it takes
  1    it does not fit

options beside those of train:
"""

STREAMED = 2000
"""Pairs of a stream whose lengths are looked at."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command takes beside ``train``'s options; every field's help is its meaning."""

    memory: str | None = option(
        None,
        "Memory of a device, with its unit, as 24GiB or 80GB. null: what this machine has left.",
    )
    ranks: int = option(1, "Processes that share a step, each on a device, >= 1.")
    pairs: int | None = option(
        None,
        "Pairs wanted of a step over all ranks, >= 1. null: what batch size and "
        "accumulation make of the ranks.",
    )
    device: str = option(
        "auto",
        "Kind of device to plan for; cuda means bf16 unless another precision is "
        "asked for. auto: this machine's.",
        ("auto", "cpu", "cuda"),
    )
    json: bool = option(False, "The plan as JSON, in bytes, instead of a table.")

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("ranks", "pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError("CP103", f"{name}={value} should be a whole number, at least 1.")
        if self.pairs is not None and self.pairs % self.ranks:
            raise ConfigError(
                "CP103", f"pairs={self.pairs} should be a multiple of ranks={self.ranks}."
            )


COMMAND = Command("plan", USAGE, PlanOptions, of_train=True)


def plan(words: list[str]) -> int:
    """Plan the run that a command line asks for, and say it on standard output.

    Args:
        words: what follows ``counterpoint plan``.

    Returns:
        0 where it fits, 1 where it does not.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, others = COMMAND.read(words)
    with importing():
        from counterpoint import ranks
        from counterpoint.planner.machine import SHARE, available_memory, read_bytes
        from counterpoint.planner.table import as_table

    memory = None if options.memory is None else read_bytes(options.memory)
    with importing():
        from counterpoint.options.settings import read_request

    request = read_request(others)
    _assume(request, options)
    if memory is None:
        memory = available_memory(request.config.device) // ranks.launched_here()
    planner = _planner(request, options)
    with phase("planning"):
        found = planner.plan(memory, round(SHARE * memory), options.pairs)
    text = strict_json(found.as_dict(), indent=1) if options.json else as_table(found)
    put(text)
    return 0 if found.fits else 1


def _assume(request: Request, options: PlanOptions) -> None:
    """What the options would be on a machine with the device that is planned for."""
    if options.device == "cuda" and not {"bf16", "fp16", "use_cpu"} & set(request.given):
        request.config.bf16 = True


def _planner(request: Request, options: PlanOptions) -> Any:
    import torch

    from counterpoint.cli.hub import hub_or_cache
    from counterpoint.cli.parts import (
        adapter_config,
        hide_token,
        hub_names,
        load_own_tokenizer,
        merge_model_options,
    )
    from counterpoint.forward.dropout import disable_dropout
    from counterpoint.models.loading import load_config, random_model
    from counterpoint.models.preparing import prepare_tokenizer
    from counterpoint.models.weights import WeightsPolicy
    from counterpoint.planner.plan import Planner

    quiet_bars()
    run, config = request.run, request.config
    hide_token(config)
    with hub_or_cache(hub_names(run)):
        merge_model_options(run, config)
        described = load_config(str(run.model), config, from_scratch=True)
        tokenizer = prepare_tokenizer(load_own_tokenizer(run, config))
        lengths = _lengths(request, tokenizer)
    policy = WeightsPolicy.of(config, adapter=bool(run.lora_r))
    with torch.device("meta"):
        model = random_model(str(run.model), config, described, policy)
    if config.disable_dropout:
        disable_dropout(model)
    return Planner(
        model,
        config,
        lengths,
        adapter=adapter_config(run),
        ranks=options.ranks,
        device=None if options.device == "auto" else options.device,
    )


def _lengths(request: Request, tokenizer: Any) -> Lengths:
    from itertools import islice

    from counterpoint.cli.parts import train_rows
    from counterpoint.data.options import PrepareOptions
    from counterpoint.data.prepare import iter_pairs, prepare
    from counterpoint.planner.shapes import Lengths

    rows = train_rows(request.run, request.config)
    prepared = prepare(rows, tokenizer, PrepareOptions.of(request.config), name="train")
    if hasattr(prepared.pairs, "__len__"):
        return Lengths.of(prepared.pairs)
    return Lengths.of(islice(iter_pairs(prepared), STREAMED))
