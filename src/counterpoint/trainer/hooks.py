"""Methods that a subclass, or a patch, may replace: those that are never called here are refused.

TRL's ``CPOTrainer`` and transformers' ``Trainer`` are often changed by replacing a method. Some of
those methods have no counterpart here, or one of another name; a replacement of them would be
defined and never run, and the run would train with the stock loss or data. Each is refused with the
name of the hook that is ours. A replacement that is called by the user's own code is left alone.

Not here: what the hooks do (``trainer``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, MappingProxyType
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.trainer.transformers_seams import EVALUATION, IDLE

_LOSS = "compute_loss, which is called for every micro-batch, or trainer.objective, which makes the"
_LOSS += " loss of each pair"
_FORWARD = "compute_loss, which is called with every micro-batch as a PairBatch"
_DATA = "a train_dataset of prepared rows (counterpoint.data), or get_train_dataloader"
_SAMPLES = "generate_during_eval, or a callback"

NOT_CALLED: Mapping[str, str] = MappingProxyType(
    {
        # TRL's CPOTrainer, and those of its relatives that scripts are ported from
        "cpo_loss": _LOSS,
        "dpo_loss": _LOSS,
        "orpo_loss": _LOSS,
        "odds_ratio_loss": _LOSS,
        "simpo_loss": _LOSS,
        "get_batch_loss_metrics": _LOSS,
        "get_batch_metrics": _LOSS,
        "concatenated_forward": _FORWARD,
        "concatenated_inputs": _FORWARD,
        "get_batch_logps": _FORWARD,
        "_shift_right": _FORWARD,
        "tokenize_row": _DATA,
        "build_tokenized_answer": _DATA,
        "_prepare_dataset": _DATA,
        "generate_from_model": _SAMPLES,
        "get_batch_samples_from_model": _SAMPLES,
        "store_metrics": "log",
        # Counterpoint's own up to 0.4
        "shared_state": "state_dict",
        "load_shared_state": "load_state_dict",
        "rank_state": "rank_state_dict",
        "load_rank_state": "load_rank_state_dict",
        # transformers' Trainer
        "prediction_step": EVALUATION,
        "prediction_loop": EVALUATION,
        "get_train_sampler": "train_sampling_strategy, or get_train_dataloader",
        "get_eval_sampler": "get_eval_dataloader",
        **IDLE,
    }
)
"""Method that nothing calls here -> the hook that is ours."""

ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        "compute_loss_func": _LOSS,
        "label_smoother": "label_smoothing",
        "data_collator": "a batch's layout is chosen so that a step stays the same function of its "
        "pairs; leave it out",
        "preprocess_logits_for_metrics": "compute_metrics, which gets each pair's rewards",
    }
)
"""Attribute of transformers' that nothing reads here -> what is ours."""

_ANY = object()
CALLS: Mapping[str, tuple[int, tuple[str, ...]]] = MappingProxyType(
    {
        "compute_loss": (2, ("num_items_in_batch",)),
        "training_step": (3, ()),
        "get_batch_samples": (3, ()),
        "log": (2, ()),
        "evaluate": (0, ("ignore_keys",)),
        "get_eval_dataloader": (1, ()),
        "evaluation_loop": (
            1,
            ("description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
        ),
        "create_scheduler": (0, ("num_training_steps",)),
        "save_model": (1, ("_internal_call",)),
        "floating_point_ops": (1, ()),
    }
)
"""Hook -> by how many positions and which keywords it is called."""


def check_hooks(trainer: Any, ours: type[Any]) -> None:
    """Refuse replaced methods that are never called, or that cannot be called as their hook is.

    Args:
        trainer: of the class ``ours`` or a subclass, made or being made.
        ours: ``CPOTrainer``.

    Raises:
        ConfigError: CP109 for one that is never called, CP111 for one with other arguments.
    """
    replaced = dict(_replaced(trainer, ours))
    for name in _idle(replaced):
        raise ConfigError(
            "CP109",
            f"{type(trainer).__name__}.{name} would never be called, and the run would be the "
            f"stock one. The hook here is {NOT_CALLED[name]} (docs/from-trl.md).",
        )
    for name, (positions, keywords) in CALLS.items():
        if name in replaced and not _takes(replaced[name], positions, keywords):
            told = ", ".join(["_"] * positions + [f"{word}=_" for word in keywords])
            raise ConfigError(
                "CP111",
                f"{type(trainer).__name__}.{name} is called as {name}({told}), which its arguments "
                f"do not allow; give it those of CPOTrainer.{name}.",
            )


def check_attributes(trainer: Any, made: Mapping[str, Any]) -> None:
    """Refuse attributes that were set after the trainer was made and that nothing reads.

    Args:
        trainer: about to train or to evaluate.
        made: the ``ATTRIBUTES`` as they were when it was made.

    Raises:
        ConfigError: CP109.
    """
    for name, instead in ATTRIBUTES.items():
        if getattr(trainer, name, None) is not made.get(name):
            raise ConfigError(
                "CP109",
                f"trainer.{name} was set, but nothing reads it here. In its place: {instead}.",
            )


def _replaced(trainer: Any, ours: type[Any]) -> Iterator[tuple[str, Any]]:
    """Methods of the user's own, by name, as functions that take no ``self`` any more.

    A class that ``ours`` is made of may have been patched with a name that it never had.
    """
    kind = type(trainer)
    of_users = [one for one in kind.__mro__ if one not in ours.__mro__]
    for one in reversed(of_users):
        yield from ((n, f) for n, f in vars(one).items() if callable(_plain(f)))
    own = [one for one in ours.__mro__ if one.__module__.startswith("counterpoint.")]
    for one in own:
        yield from ((n, f) for n, f in vars(one).items() if n in NOT_CALLED)
    yield from ((n, f) for n, f in vars(trainer).items() if n in {*NOT_CALLED, *CALLS})


def _plain(method: Any) -> Any:
    """The function of a static or class method, or of a bound one."""
    return getattr(method, "__func__", method)


def _idle(replaced: Mapping[str, Any]) -> list[str]:
    """Of the replaced methods those that nothing calls, not even one that is called."""
    left = {name for name in replaced if name in NOT_CALLED}
    live = [method for name, method in replaced.items() if name not in left]
    while live:
        called = _names(getattr(_plain(live.pop()), "__code__", None)) & left
        left -= called
        live += [replaced[name] for name in called]
    return [name for name in NOT_CALLED if name in left]


def _names(code: CodeType | None) -> set[str]:
    """Names of attributes and globals that some code uses, functions within it included."""
    if code is None:
        return set()
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _takes(method: Any, positions: int, keywords: tuple[str, ...]) -> bool:
    """Whether a replacement can be called as its hook is."""
    try:
        signature = inspect.signature(_plain(method))
    except (TypeError, ValueError):
        return True
    # a function of a class, or one bound to a trainer, takes it first; one set on a trainer may not
    bound = getattr(method, "__self__", None) is not None
    is_method = bound or (inspect.isfunction(method) and "self" in list(signature.parameters)[:1])
    try:
        signature.bind(*[_ANY] * (positions + is_method), **dict.fromkeys(keywords, _ANY))
    except TypeError:
        return False
    return True
