"""``counterpoint plan``: what a run needs in memory, before a weight is loaded.

It takes the options of ``train`` and needs data, a tokenizer and the model's configuration, but
no weights and none of the memory that it plans for.

Not here: the arithmetic (``planner``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import importing, put, quiet_bars
from counterpoint.console.phases import phase
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.options.limits import refuse_below
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.data.encoder import Encoder
    from counterpoint.options.settings import Request
    from counterpoint.planner.scaling import Cluster
    from counterpoint.planner.shapes import Lengths

USAGE = """\
usage: counterpoint plan [CONFIG.yaml] [--memory 24GiB] [--ranks N]
                         [--nodes M] [--json] [--option value ...]

Says what a run needs in memory, by what it is needed for; how many tokens a
micro-batch may hold; every way to cut a step of the wanted pairs; and, where
it does not fit, what to turn on, cheapest first. Takes the options of
counterpoint train; needs data, tokenizer and config.json, no weights.

examples:
  counterpoint plan run.yaml --memory 24GiB --ranks 8
  counterpoint plan run.yaml --memory 80GB --device cuda --pairs 128 --json
  counterpoint plan run.yaml --fsdp 2 --ranks 64 --nodes 8 --memory 80GB \\
                    --device cuda --inter_bandwidth 40

exit codes:
  0    it fits, cut into micro-batches as small as it takes
  1    it does not fit

options beside those of train:
"""

SPEEDS = ("intra_bandwidth", "inter_bandwidth", "peak", "kernel_efficiency")
"""Options that say how fast machines are; only a run in shards has a use for them."""

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
    nodes: int = option(
        1, "Machines that the ranks are on, each with as many of them, >= 1; for fsdp."
    )
    intra_bandwidth: float = option(
        360.0,
        "GB/s that a device exchanges with others of its machine, each way, > 0; the default is 80 "
        "% of an H100's NVLink. For fsdp, as the next three.",
    )
    inter_bandwidth: float = option(
        40.0,
        "GB/s that a device exchanges with other machines, each way, > 0; the default is 80 % of "
        "400 Gb/s.",
    )
    peak: float = option(
        989.0, "TFLOP/s of a device by its data sheet, > 0; the default is an H100's in bf16."
    )
    kernel_efficiency: float = option(
        0.5, "Share of the peak that large products reach, in (0, 1]."
    )
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
        refuse_below(self, ranks=1, nodes=1, pairs=1)
        if self.pairs is not None and self.pairs % self.ranks:
            raise ConfigError(
                "CP103", f"pairs={self.pairs} should be a multiple of ranks={self.ranks}."
            )
        if self.ranks % self.nodes:
            raise ConfigError(
                "CP103",
                f"ranks={self.ranks} should be a multiple of nodes={self.nodes}: each machine has "
                "as many.",
            )
        for name in SPEEDS:
            value, most = getattr(self, name), 1.0 if name == "kernel_efficiency" else math.inf
            if not 0 < value <= most or value == math.inf:
                words = "in (0, 1]" if most == 1 else "a finite number above 0"
                raise ConfigError("CP103", f"{name}={value} should be {words}.")

    def cluster(self, replicas: int) -> Cluster:
        """The machines of a run in shards.

        Args:
            replicas: whole models among the ranks.

        Raises:
            ConfigError: CP103 where ranks are no multiple of them, or fewer than two for each: such
                a run does not start.
        """
        from counterpoint.planner.scaling import Cluster

        if self.ranks < 2 * replicas:
            copies = f" for each of fsdp_replicas={replicas}" if replicas > 1 else ""
            raise ConfigError(
                "CP103",
                f"ranks={self.ranks} should be at least 2{copies}: fsdp shares a model among "
                "ranks. Say how many there will be (--ranks 8).",
            )
        if self.ranks % replicas:
            raise ConfigError(
                "CP103", f"ranks={self.ranks} should be a multiple of fsdp_replicas={replicas}."
            )
        return Cluster(
            ranks=self.ranks,
            nodes=self.nodes,
            replicas=replicas,
            intra=self.intra_bandwidth * 1e9,
            inter=self.inter_bandwidth * 1e9,
            peak=self.peak * 1e12,
            efficiency=self.kernel_efficiency,
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
    cluster = _cluster(request, options)
    planner = _planner(request, options, 1 if cluster is None else cluster.shards)
    with phase("planning"):
        found = planner.plan(memory, round(SHARE * memory), options.pairs, cluster)
    text = strict_json(found.as_dict(), indent=1) if options.json else as_table(found)
    put(text)
    return 0 if found.fits else 1


def _assume(request: Request, options: PlanOptions) -> None:
    """What the options would be on a machine with the device that is planned for."""
    if options.device == "cuda" and not {"bf16", "fp16", "use_cpu"} & set(request.given):
        request.config.bf16 = True


def _cluster(request: Request, options: PlanOptions) -> Cluster | None:
    """The machines, where the run is in shards.

    Raises:
        ConfigError: CP104 for what would do nothing in a run that is not.
    """
    if request.config.fsdp:
        return options.cluster(request.config.fsdp_replicas or 1)
    for name in ("nodes", *SPEEDS):
        if getattr(options, name) != PlanOptions.__dataclass_fields__[name].default:
            raise ConfigError(
                "CP104",
                f"{name}={getattr(options, name)} would do nothing: ranks that each have the whole "
                "model are planned by memory alone. Add fsdp: 2, or leave it out.",
            )
    return None


def _planner(request: Request, options: PlanOptions, shards: int) -> Any:
    import torch

    from counterpoint.cli.continued import base_named
    from counterpoint.cli.hub import hub_or_cache
    from counterpoint.cli.new_tokens import described_with_rows
    from counterpoint.cli.parts import (
        adapter_config,
        hide_token,
        hub_names,
        load_own_tokenizer,
        merge_model_options,
    )
    from counterpoint.forward.dropout import disable_dropout
    from counterpoint.models.loading import described_files, load_config, random_model
    from counterpoint.models.own_head import part_head
    from counterpoint.models.preparing import encoder_of, prepare_tokenizer
    from counterpoint.models.trainable import freeze_parts
    from counterpoint.models.weights import WeightsPolicy
    from counterpoint.planner.compressed import compress
    from counterpoint.planner.plan import Planner

    quiet_bars()
    run, config = request.run, request.config
    hide_token(config)
    with hub_or_cache(hub_names(run)):
        merge_model_options(run, config)
        source = base_named(run)
        described = load_config(source, config, from_scratch=True)
        tokenizer = prepare_tokenizer(load_own_tokenizer(run, config))
        lengths = _lengths(request, encoder_of(described, tokenizer, config))
    adapter = adapter_config(run, config, described)
    described = described_with_rows(described, run, tokenizer)
    policy = WeightsPolicy.of(config, adapter=adapter is not None)
    with torch.device("meta"):
        model = random_model(source, config, described, policy)
    if not run.from_scratch:
        part_head(model, *described_files(source, config))
    if policy.quantization is not None:
        compress(model, policy.quantization)
    if config.disable_dropout:
        disable_dropout(model)
    freeze_parts(model, run.freeze or ())
    return Planner(
        model,
        config,
        lengths,
        adapter=adapter,
        ranks=options.ranks,
        shards=shards,
        device=None if options.device == "auto" else options.device,
    )


def _lengths(request: Request, encoder: Encoder[Any]) -> Lengths:
    from itertools import islice

    from counterpoint.cli.own_data import train_rows
    from counterpoint.data.options import PrepareOptions
    from counterpoint.data.prepare import iter_pairs, prepare
    from counterpoint.planner.shapes import Lengths

    rows = train_rows(request.run, request.config)
    prepared = prepare(rows, encoder, PrepareOptions.of(request.config), name="train")
    if hasattr(prepared.pairs, "__len__"):
        return Lengths.of(prepared.pairs, encoder)
    return Lengths.of(islice(iter_pairs(prepared), STREAMED), encoder)
