"""The checks of a smoke run: each tries one thing in miniature and says what it saw.

1. What the run would refuse or stop for with a code of its own is raised, not judged: then there
   is nothing to check. A step that is not finite is judged.
2. Gradients are compared in float32, whatever the run's precision: in 16 bits rounding alone is
   larger than what is looked for.
3. Anything else that a check raises is a failed check, and the others go on.

Not here: the training itself (``miniature``), and how a check is shown (``report``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from counterpoint.errors import ConfigError, CounterpointError, NonFiniteError, kind_and_line
from counterpoint.forward.alone import logits_alone
from counterpoint.forward.layouts import AUTO
from counterpoint.model_seams import attention_of
from counterpoint.models.family import family_of
from counterpoint.records import TokenPair
from counterpoint.smoke.miniature import Miniature, Trained, distance
from counterpoint.smoke.report import Check, Status

GRADIENT_LIMIT = 1e-5
"""Largest relative distance of two gradients that should be one; float32 leaves about 1e-7."""

LOGP_LIMIT = 1e-5
"""Largest difference of a log-probability, relative where above 1 nat, of a model loaded again."""

RESUME_LIMIT = 1e-3
"""Largest distance of the weights of a resumed run from those of a straight one, as a share of
the way that both went. Lost moments of Adam make it about 1."""

COMPARED = 4
"""Pairs whose log-probabilities are compared."""

NAMED = 3
"""Tensors that a failed check names."""

LOSS, MOVE, STAY = "loss falls", "weights move", "frozen stay"
LAYOUTS_AGREE, SPLITS_AGREE = "layouts agree", "splits agree"
RELOAD, RESUME = "save reloads", "resume"
NAMES = (LOSS, MOVE, STAY, LAYOUTS_AGREE, SPLITS_AGREE, RELOAD, RESUME)
"""Every check, in the order they are made."""

Judgement = tuple[Status, str]


def make_check(name: str, check: Callable[..., Judgement], *facts: Any) -> Check:
    """Make a check; what it raises without a code is what it saw.

    Raises:
        CounterpointError: where the run itself could not be, except for steps that are not
            finite.
    """
    try:
        status, seen = check(*facts)
    except NonFiniteError as error:
        status, seen = "failed", str(error)
    except CounterpointError:
        raise
    except Exception as error:
        status, seen = "failed", kind_and_line(error)
    return Check(name, status, seen)


def loss_falls(mini: Miniature, trained: Trained) -> Judgement:
    """Whether every step's loss is finite, and that of all pairs lower after the last step.

    Args:
        mini: what was trained.
        trained: with its objective.
    """
    wrong = [step for step, loss in trained.losses.items() if not math.isfinite(loss)]
    if wrong:
        return "failed", f"the loss of step {wrong[0]} is not finite"
    if trained.skipped:
        return "failed", f"{trained.skipped} of {mini.steps} steps were not finite and skipped"
    before, after = trained.objective
    seen = f"{before:.4f} before, {after:.4f} after {mini.steps} steps over {len(mini.pairs)} pairs"
    # a comparison with NaN is false
    return "ok" if after < before else "failed", seen


def weights_move(trained: Trained) -> Judgement:
    """Whether every tensor that trains has changed."""
    names = [name for name in trained.before if name not in trained.frozen | trained.idle]
    stuck = [n for n in names if torch.equal(trained.before[n], trained.after[n])]
    if stuck:
        return "failed", f"{len(stuck)} of {len(names)} tensors did not move: {_some(stuck)}"
    seen = f"all {len(names)} tensors that train"
    if trained.idle:
        seen += (
            f"; no pair has a use for {len(trained.idle)} of the tower: {_some([*trained.idle])}"
        )
    return "ok", seen


def frozen_stay(trained: Trained) -> Judgement:
    """Whether no tensor that is frozen has changed."""
    if not trained.frozen:
        return "not applicable", "every tensor trains"
    moved = [n for n in trained.frozen if not torch.equal(trained.before[n], trained.after[n])]
    if moved:
        return "failed", f"{len(moved)} of {len(trained.frozen)} tensors moved: {_some(moved)}"
    return "ok", f"all {len(trained.frozen)} frozen tensors"


def layouts_agree(mini: Miniature) -> Judgement:
    """Whether the fastest layout gives the gradient of the reference."""
    fastest, *_, reference = family_of(mini.model.config).layouts
    if mini.args.layout == reference.name:
        return "not applicable", f"the run asks for {reference.name} rows"
    name = fastest.name if mini.args.layout == AUTO else mini.args.layout
    try:
        shared = mini.gradient(layout=name)
    except ConfigError as error:
        if error.code != "CP104":
            raise
        return "not applicable", error.message
    truth = mini.gradient(layout=reference.name)
    return _agreement([distance(truth, shared)], f"{name} and {reference.name} rows")


def splits_agree(mini: Miniature) -> Judgement:
    """Whether a step's gradient is the same however its pairs are cut into micro-batches."""
    pairs = mini.step_pairs
    if pairs == 1:
        return "not applicable", "one pair cannot be split"
    splits = [(pairs, 1), *({(2, -(-pairs // 2)), (1, pairs)} - {(pairs, 1)})]
    gradients = [
        mini.gradient(per_device_train_batch_size=micro, gradient_accumulation_steps=windows)
        for micro, windows in splits
    ]
    shown = ", ".join(f"{micro} x {windows}" for micro, windows in splits)
    return _agreement([distance(gradients[0], other) for other in gradients[1:]], shown)


def save_reloads(mini: Miniature, trained: Trained) -> Judgement:
    """Whether what was saved loads again, by transformers or PEFT alone, to the same model."""
    adapted = hasattr(trained.model, "peft_config")
    if adapted:
        from peft import PeftModel

        loaded: Any = PeftModel.from_pretrained(copy.deepcopy(mini.model), str(trained.folder))
        how = "PEFT, on the model as it was,"
    else:
        loaded, report = family_of(trained.model.config).auto_class.from_pretrained(
            trained.folder,
            dtype=trained.model.dtype,
            attn_implementation=attention_of(trained.model),
            trust_remote_code=mini.args.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
        how = "transformers"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                names = [str(key) for key in report[kind]]
                return "failed", f"{len(names)} {kind.replace('_', ' ')}: {_some(names)}"
    pairs = mini.pairs[:COMPARED]
    before, after = logps(trained.model, pairs), logps(loaded, pairs)
    worst = float(((before - after).abs() / before.abs().clamp(min=1)).max())
    seen = (
        f"loaded by {how} the log-probabilities of {len(before)} completions differ by "
        f"{_shown(worst)} (limit {LOGP_LIMIT:.0e})"
    )
    return "ok" if worst <= LOGP_LIMIT else "failed", seen


def resume_goes_on(mini: Miniature, straight: Trained) -> Judgement:
    """Whether a run that is resumed from a checkpoint ends where a straight one ended."""
    if mini.args.save_only_model:
        return (
            "not applicable",
            "save_only_model keeps no state of the optimizer, so a resumed run starts it anew",
        )
    half = mini.half
    resumed = mini.train("resumed", resume=straight.folder / f"checkpoint-{half}")
    left = mini.steps - half
    if resumed.steps != left:
        return "failed", f"{resumed.steps} steps were done after the checkpoint, not {left}"
    way = {n: straight.after[n].double() - straight.before[n].double() for n in straight.after}
    other = {n: resumed.after[n].double() - straight.before[n].double() for n in straight.after}
    worst = distance(way, other)
    later = [step for step in straight.losses if step > half]
    apart = max(abs(straight.losses[s] - resumed.losses.get(s, math.inf)) for s in later)
    seen = (
        f"resumed after step {half} of {mini.steps}: weights {_shown(worst)} of the way apart "
        f"(limit {RESUME_LIMIT:.0e}), losses {_shown(apart)}"
    )
    if worst <= RESUME_LIMIT and math.isfinite(apart):
        return "ok", seen
    far = sorted(way, key=lambda name: float((way[name] - other[name]).norm()))[: -NAMED - 1 : -1]
    return "failed", f"{seen}; most in {', '.join(far)}"


def logps(model: Any, pairs: Sequence[TokenPair]) -> Tensor:
    """Summed log-probability of the completions of pairs, the plain way, in float32 on the CPU.

    Args:
        model: of any family that is trained; left on the CPU, in float32, evaluating.
        pairs: at least one.
    """
    model = model.float().cpu().eval()
    sums = []
    with torch.no_grad():
        for pair in pairs:
            for completion in pair.completions:
                logits, ids = logits_alone(model, pair, completion)
                logps = logits.double().log_softmax(-1).gather(-1, ids[:, None])
                sums.append(logps.sum())
    return torch.stack(sums)


def _agreement(distances: Sequence[float], what: str) -> Judgement:
    worst = max(distances)
    seen = f"{what}: gradients differ by {_shown(worst)} (limit {GRADIENT_LIMIT:.0e}), in float32"
    # a comparison with NaN is false
    return "ok" if worst <= GRADIENT_LIMIT else "failed", seen


def _shown(value: float) -> str:
    return f"{value:.1e}" if value else "nothing"


def _some(names: Sequence[str]) -> str:
    rest = ", ..." if len(names) > NAMED else ""
    return f"{', '.join(sorted(names)[:NAMED])}{rest}"
