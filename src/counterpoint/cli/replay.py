"""``counterpoint replay``: a step that was not finite, done again, to see what broke first.

The run wrote the step into its folder when it failed (``step.replay.recorder``), with what was not
finite then. Weights are not in the file: they are read from the run's last checkpoint before the
step, else from the run as it began, or from ``--model``; where they are others than the step's,
the outcome may be another, and that is said.

Not here: the file (``step.replay.file``), the arithmetic (``step.replay.recompute``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.checkpoint.folder import finished, step_of
from counterpoint.checkpoint.manifest import read_manifest
from counterpoint.console.manners import importing, put, quiet_bars, terminal_width
from counterpoint.console.phases import phase
from counterpoint.constraints import KINDS
from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.model_seams import loaded_from
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.runlog import REQUEST_FILE
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from torch import nn

    from counterpoint.config import CPOConfig
    from counterpoint.forward.initial_policy import InitialPolicy
    from counterpoint.forward.rows import EmbeddingRows
    from counterpoint.step.replay.file import Culprit, Replay
    from counterpoint.step.replay.held import HeldSet

USAGE = """\
usage: counterpoint replay FILE [--model M] [--option value ...]

Does a step again that had a loss or gradient that is not finite, and says which
row, which token and which term was the first. FILE is what the run wrote into
its folder: replay-STEP.safetensors.

examples:
  counterpoint replay runs/first/replay-12.safetensors
  counterpoint replay runs/first/replay-12.safetensors --model Qwen/Qwen2.5-0.5B

options:
"""

SHOWN = 3
"""Lines of a list for each kind of term."""

_SEVERAL = {"loss": "losses", "log-probability": "log-probabilities", "pixels": "pictures"}


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What the command takes beside the file; every field's help is its meaning."""

    model: str | None = option(
        None,
        "A model or a saved adapter, as a folder or a hub id. null: the run's last "
        "checkpoint before the step, else the model that the run began with.",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    allow_pickle: bool = option(False, "Read weights that are pickles; see docs/security.md.")
    json: bool = option(False, "One JSON object instead of a text.")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model, and in words which one.

    Args:
        model: ready to be computed with.
        name: where it is from.
        remark: how it differs from the step's own.
        policy: what the run began with, where a constraint of the step runs it again and it is
            known; else None.
    """

    model: nn.Module
    name: str
    remark: str
    policy: InitialPolicy | None = None


CLOSING = "exit codes: 0 something is not finite, 1 everything is finite this time"

COMMAND = Command("replay", USAGE, ReplayOptions, closing=CLOSING)


def replay(words: list[str]) -> int:
    """Do the step of a file again.

    Args:
        words: what follows ``counterpoint replay``.

    Returns:
        0 where something is not finite, 1 where everything is.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, others = COMMAND.read(words)
    if len(others) != 1:
        raise ConfigError(
            "CP107", "FILE is missing: counterpoint replay takes one replay-STEP.safetensors."
        )
    path = Path(others[0])
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.step.replay.file import read_replay
        from counterpoint.step.replay.held import HeldSet

    quiet_bars()
    step = read_replay(path)
    weights = _weights(step, path.parent, options)
    with phase("doing the step again"):
        held = HeldSet(step, policy=weights.policy)
        culprits = _again(step, weights.model, held)
    left_out = _left_out(held)
    if options.json:
        put(strict_json(_as_dict(step, weights, culprits, left_out)))
    else:
        lines = _report(step, path, weights, culprits, left_out)
        put("\n".join(lines))
    return 0 if culprits else 1


def _again(step: Replay, model: nn.Module, held: HeldSet) -> tuple[Culprit, ...]:

    from counterpoint.forward.dropout import disable_dropout
    from counterpoint.forward.head import prove_head
    from counterpoint.forward.kept_features import keep_features
    from counterpoint.forward.layouts import LAYOUTS, first_tokens
    from counterpoint.forward.seeing import PARTS_THAT_SEE
    from counterpoint.models.checkpointing import enable_checkpointing
    from counterpoint.models.family import family_of
    from counterpoint.models.preparing import embedding_rows
    from counterpoint.models.trainable import freeze_parts
    from counterpoint.step.assembly import PROOF_TOKENS
    from counterpoint.step.replay.pictures import check_seen_by, pictures_fit
    from counterpoint.step.replay.recompute import culprits_of

    device = step.settings.device if _is_here(step.settings.device) else "cpu"
    model.to(device)
    if not step.settings.dropout:
        disable_dropout(model)
    if step.settings.checkpointing and getattr(model, "supports_gradient_checkpointing", False):
        enable_checkpointing(model, share=step.settings.checkpointing_share)
    _check_ids(step, embedding_rows(model))
    pairs = [pair for batch in step.micro_batches for pair in batch]
    check_seen_by(model, pairs)
    if step.settings.pictures_alone and any(pair.seen for pair in pairs):
        freeze_parts(model, PARTS_THAT_SEE)  # as in the run; and nothing is to be kept
        keep_features(model, 1)
    if reason := LAYOUTS[step.settings.layout].why_not(model):
        raise ConfigError("CP104", f"the step shared its prompts, but in this model {reason}.")
    configured: Any = model.config
    family = family_of(configured)
    reference = family.layouts[-1]
    few = first_tokens(reference, step.micro_batches[0][0], PROOF_TOKENS).to(device)
    head = prove_head(model, family.find_head(model), few.input_ids, reference.inputs(few))
    with pictures_fit(step.micro_batches):
        return culprits_of(step, model, head, device=device, held=held)


def _left_out(held: HeldSet) -> dict[str, str]:
    """Constraints that have no part in what is done again, and why."""
    functions = dict.fromkeys(held.left_out, "its functions are not in the file")
    if held.policy is not None:
        return functions
    needy = [one.asked.name for one in held.all if one.asked.row.needs_policy]
    return functions | dict.fromkeys(needy, "the weights that the run began with are not known")


def _is_here(device: str) -> bool:
    import torch

    return device == "cuda" and torch.cuda.is_available()


def _check_ids(step: Replay, known: EmbeddingRows | None) -> None:
    from counterpoint.forward.rows import check_ids

    if known is not None:
        check_ids([pair for batch in step.micro_batches for pair in batch], known)


# Weights


def _weights(step: Replay, folder: Path, options: ReplayOptions) -> Weights:
    if options.model:
        model = _load(options.model, step, options)
        return Weights(model, options.model, "whether it is the step's own is for you to know")
    last = _last_checkpoint(folder, step.step)
    if last is None:
        before = f"those that the run began with, {step.step - 1} steps before"
        own = before if step.step > 1 else "the step's own: those that the run began with"
        model, name = _as_begun(step, folder, options)
        return Weights(model, name, own, _policy(step, model))
    number, path = last
    between = step.step - 1 - number
    later = f"{between} step{'s' if between != 1 else ''} before those of the step"
    own = "the step's own, as the step began" if not between else later
    if not _needs_policy(step):
        return Weights(_load(str(path), step, options), str(path), own)
    from counterpoint.checkpoint.weights import load_weights as load_checkpoint

    model, _ = _as_begun(step, folder, options)
    policy = _policy(step, model)
    load_checkpoint(model, path, read_manifest(path).files)
    return Weights(model, str(path), own, policy)


def _needs_policy(step: Replay) -> bool:
    return any(KINDS[one.asked["kind"]].needs_policy for one in step.held.all)


def _policy(step: Replay, model: nn.Module) -> InitialPolicy | None:
    from counterpoint.forward.initial_policy import InitialPolicy

    if not _needs_policy(step):
        return None
    # its copies are to be where the model is
    model.to(step.settings.device if _is_here(step.settings.device) else "cpu")
    return InitialPolicy(model)


def _as_begun(step: Replay, folder: Path, options: ReplayOptions) -> tuple[nn.Module, str]:
    """The model that the run began with, and where it is from."""
    request = folder / REQUEST_FILE
    if request.is_file():
        return _as_asked(request, options), f"as {request} says"
    if not step.origin.model:
        raise ConfigError(
            "CP107",
            f"--model is missing: {folder} holds no checkpoint before step {step.step}, and the "
            f"{step.origin.kind} of the run was made in memory.",
        )
    return _load(step.origin.model, step, options), step.origin.model


def _last_checkpoint(folder: Path, step: int) -> tuple[int, Path] | None:
    """The newest finished checkpoint that is older than a step, by the step it was saved after."""
    found = ((step_of(path), path) for path in finished(folder))
    older = [(number, path) for number, path in found if number is not None and number < step]
    return older[-1] if older else None


def _load(source: str, step: Replay, options: ReplayOptions) -> nn.Module:
    from counterpoint.models.adapters import is_adapter, load_adapted
    from counterpoint.models.loading import load_config, load_model

    config = _config(source, step, options)
    if is_adapter(source):
        adapted: nn.Module = load_adapted(source, config)
        return adapted
    load_config(source, config)
    model: nn.Module = load_model(source, config)
    return model


def _config(source: str, step: Replay, options: ReplayOptions) -> CPOConfig:
    from counterpoint.config import CPOConfig
    from counterpoint.options.run_weights import holding_of

    held = holding_of(source)
    keywords = {"dtype": held.pop("dtype", step.origin.dtype), **held.pop("model_init_kwargs", {})}
    if "revision" in held:
        keywords["revision"] = held.pop("revision")
    if step.origin.attention:
        keywords["attn_implementation"] = step.origin.attention
    return CPOConfig(
        **held,
        output_dir="replay",
        use_cpu=not _is_here(step.settings.device),
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        model_init_kwargs=keywords,
    )


def _as_asked(file: Path, options: ReplayOptions) -> nn.Module:
    """The model as a run of the command began with it, its adapter included.

    The switches are this command's own: a file beside a replay is a stranger's, too.
    """
    from transformers import set_seed

    from counterpoint.checkpoint.bases import check_base
    from counterpoint.cli.continued import base_named, trained_on
    from counterpoint.cli.parts import adapter_config, load_own_weights, merge_model_options
    from counterpoint.models.loading import load_config
    from counterpoint.models.preparing import adapt
    from counterpoint.options.settings import read_request

    switches = ("trust_remote_code", "allow_pickle")
    words = (f"--{name}={str(getattr(options, name)).lower()}" for name in switches)
    request = read_request([str(file), *words])
    run, config = request.run, request.config
    merge_model_options(run, config)
    described = load_config(base_named(run), config, from_scratch=run.from_scratch)
    model: nn.Module = load_own_weights(request, described)
    adapter = adapter_config(run, config, described)
    if adapter is None:
        return model
    set_seed(config.seed)
    adapted: nn.Module = model if trained_on(run) else adapt(model, config, adapter)
    check_base(adapted, file.parent)
    return adapted


# What is shown


def _report(
    step: Replay,
    path: Path,
    weights: Weights,
    culprits: Sequence[Culprit],
    left_out: Mapping[str, str],
) -> Iterator[str]:
    from counterpoint.wrap import wrap

    tokenizer = _tokenizer(weights.model)
    width = min(80, terminal_width())
    yield from wrap(f"{path}: step {step.step}, {_sizes(step)}, {step.objective.loss_type}", width)
    yield from wrap(step.seen, width, "then  ", " " * 6)
    if step.culprits:
        yield ""
        yield "not finite then, on the step's own weights, in the order of computing:"
        yield from _list(step.culprits, tokenizer, width)
    yield ""
    yield from wrap(f"{weights.name}; {weights.remark}", width, "now   on ", " " * 9)
    for name, why in left_out.items():
        yield from wrap(f"without constraint {name}: {why}", width, " " * 6, " " * 6)
    if culprits and culprits == step.culprits:
        yield "the same are not finite now."
    elif culprits:
        yield "not finite now:"
        yield from _list(culprits, tokenizer, width)
    else:
        yield from wrap(
            "Everything is finite on these weights: what went wrong came with those of the step"
            if not step.culprits
            else "Everything is finite on these weights; the list above is of the step's own.",
            width,
        )
    first = (step.culprits or culprits)[:1]
    for one in first:
        yield ""
        yield from wrap(f"{_place(one, tokenizer)}: {one.value}", width, "first ")


def _sizes(step: Replay) -> str:
    """How much of the step the file holds."""
    pairs, parts, whole = sum(map(len, step.micro_batches)), len(step.micro_batches), step.settings
    few, several = "s" if pairs != 1 else "", "es" if whole.micro_batches != 1 else ""
    text = f"{pairs} pair{few} in {parts} of {whole.micro_batches} micro-batch{several}"
    return text if whole.ranks == 1 else f"{text} of one of {whole.ranks} ranks"


def _list(culprits: Sequence[Culprit], tokenizer: Any, width: int) -> Iterator[str]:
    """The first few of each kind, in the order of the computation."""
    from counterpoint.wrap import wrap

    for term in dict.fromkeys(one.term for one in culprits):
        of_term = [one for one in culprits if one.term == term]
        for one in of_term[:SHOWN]:
            share = f"  ({one.count:,} of {one.total:,})" if one.total > 1 else ""
            yield from wrap(
                f"{_place(one, tokenizer)}{share}", width, f"  {one.value:>5}  ", " " * 9
            )
        if len(of_term) > SHOWN:
            yield f"         and {len(of_term) - SHOWN:,} more {_SEVERAL.get(term, f'{term}s')}"


def _place(one: Culprit, tokenizer: Any) -> str:
    """What a culprit is, in words."""
    where = [] if one.row is None else ["filler" if one.row < 0 else f"row {one.row}"]
    if one.token is not None and one.token_id is not None:
        text = f" {_written(one, tokenizer)!r}" if tokenizer is not None else ""
        where.append(f"{one.part} token {one.token}{text} (id {one.token_id})")
    elif one.part:
        numbered = one.part == "picture" and one.token is not None
        where.append(f"{one.part} {one.token}" if numbered else one.part)
    what = {
        "parameter": one.name,
        "pixels": one.name,
        "layer": f"output of {one.name}",
        "loss": f"{one.name} loss" if where else "loss of the micro-batch",
        "gradient": f"gradient of {one.name}",
    }.get(one.term, one.term)
    return f"{', '.join(where)}: {what}" if where else what


def _written(one: Culprit, tokenizer: Any) -> str:
    """A culprit's token as text."""
    from counterpoint.data.vocabularies import reader_of_sources

    of = reader_of_sources(tokenizer) if one.part == "prompt" else tokenizer
    return str(of.decode([one.token_id]))


def _tokenizer(model: nn.Module) -> Any:
    """The model's own, if it lies beside its weights; None: ids alone are shown."""
    from counterpoint.config import CPOConfig
    from counterpoint.models.loading import load_tokenizer

    source = loaded_from(model)
    try:
        return load_tokenizer(source, CPOConfig(output_dir="replay", use_cpu=True))
    except (CounterpointError, OSError, ValueError):
        return None


def _as_dict(
    step: Replay, weights: Weights, culprits: Sequence[Culprit], left_out: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "step": step.step,
        "seen": step.seen,
        "rows": [pair.row for batch in step.micro_batches for pair in batch],
        "then": [asdict(one) for one in step.culprits],
        "weights": weights.name,
        "left_out": dict(left_out),
        "now": [asdict(one) for one in culprits],
    }
