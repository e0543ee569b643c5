"""The checkpoint that a run resumes from: found, verified, and of the same experiment.

Not here: what makes an experiment the same (``experiment``, ``fingerprint``), loading what is found
(``trainer.resumable``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint import ranks
from counterpoint.checkpoint.adapted import BASE
from counterpoint.checkpoint.bases import base_then, other_base, unknown_base
from counterpoint.checkpoint.experiment import in_words_of_today, remedy
from counterpoint.checkpoint.fingerprint import Fingerprint, differences
from counterpoint.checkpoint.folder import step_of
from counterpoint.checkpoint.manifest import Manifest
from counterpoint.checkpoint.state_file import TRAINER_STATE, check_rank, check_shared, read_state
from counterpoint.checkpoint.together import last_good_together, verify_together
from counterpoint.checkpoint.tree import read_tree
from counterpoint.errors import ConfigError, SetupError
from counterpoint.log import logger

SHARED, OPTIMIZER = "run_state", "optimizer"
"""Names of the trees that hold what all ranks have in common, and the optimizer's state."""


def tree_of_rank(number: int) -> str:
    """The name of the tree that holds what one rank alone has.

    Args:
        number: of the rank.
    """
    return f"rank-{number}"


@dataclass(frozen=True, slots=True)
class Resumption:
    """A verified checkpoint that a run resumes from.

    Args:
        folder: where it lies.
        manifest: as verified.
        shared: what all ranks have in common.
        rank: what this rank alone has; None where it had none.
        base: name of the model that its run began with; None where another lies under it now.
    """

    folder: Path
    manifest: Manifest
    shared: dict[str, Any]
    rank: dict[str, Any] | None
    base: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a callback had stopped the training before its last step."""
        return bool(self.shared["place"]["stopped"])


def find_checkpoint(run: Path, wanted: str | Path | bool) -> tuple[Path, Manifest] | None:
    """The checkpoint that a run is to resume from, verified by all ranks together.

    Args:
        run: the run's folder.
        wanted: as ``ResumableTrainer.resuming`` takes it.

    Returns:
        None where "auto" finds none.

    Raises:
        ConfigError: CP103 where there is none, or the named one is no folder.
        SetupError: CP511 to CP514 for a named one that is not whole; CP512 where there are some
            but none is whole.
    """
    word = str(wanted).lower()
    folder = Path(str(wanted))
    if word in ("true", "latest", "auto"):
        found = last_good_together(run)
        if found is None and word != "auto":
            raise ConfigError(
                "CP103", f"resume_from_checkpoint: {run} holds no complete checkpoint."
            )
        return found
    if not ranks.first_does(folder.is_dir):
        raise ConfigError(
            "CP103",
            f"resume_from_checkpoint={wanted} is no checkpoint: it should be a folder, or "
            "'latest' or 'auto'.",
        )
    return folder, verify_together(folder, step=step_of(folder))


def read_resumption(folder: Path, manifest: Manifest) -> Resumption:
    """Read what a checkpoint holds beside weights and optimizer, and beside what ranks have alone.

    Args:
        folder: of the checkpoint.
        manifest: as verified.

    Raises:
        SetupError: CP514 for a model alone, CP512 for states that are none.
    """
    if not manifest.resumable:
        raise SetupError(
            "CP514",
            f"{folder} holds the model alone (save_only_model), from which no run can resume. "
            "Give it as the model of a new run.",
        )
    shared = read_tree(folder, SHARED)
    check_shared(shared, folder)
    return Resumption(folder, manifest, shared, None, base=base_then(folder, shared["own"]))


def read_rank(folder: Path, number: int) -> dict[str, Any]:
    """What one rank had alone.

    Args:
        folder: of a verified checkpoint.
        number: of the rank.

    Raises:
        SetupError: CP512 for a state that is none.
    """
    found: dict[str, Any] = read_tree(folder, tree_of_rank(number))
    check_rank(found, folder)
    return found


def compared(
    found: Resumption,
    experiment: Callable[[], Fingerprint],
    *,
    steps: int,
    base: str,
    anyway: bool,
) -> Resumption:
    """Refuse a checkpoint of another experiment, unless that is meant.

    Args:
        found: as read.
        experiment: gives the fingerprint of this run; it may go through all of the data.
        steps: optimizer steps that this run is to have in all.
        base: the name of the model that this run was given.
        anyway: the difference is meant, and only told.

    Returns:
        The same, without the name of its base where another model lies under it now.

    Raises:
        SetupError: CP513.
    """
    folder, manifest = found.folder, found.manifest
    if steps < manifest.step:
        raise SetupError(
            "CP513",
            f"{folder} is after step {manifest.step:,}, and the run is to have {steps:,} in all "
            "(max_steps, num_train_epochs), so that nothing would be trained. Ask for more "
            "steps, or take the checkpoint as the model of a new run.",
        )
    state = read_state(folder / TRAINER_STATE)
    now = experiment()
    if BASE in now and BASE not in manifest.fingerprint:
        logger().warning("%s", unknown_base(folder, found.base))
    different = differences(in_words_of_today(manifest.fingerprint, int(state["max_steps"])), now)
    if not different:
        return found
    text = f"{folder} is of a different experiment: {'; '.join(different.values())}."
    if BASE in different:
        text += other_base(found.base, base)
    if not anyway:
        raise SetupError(
            "CP513",
            f"{text} Resume with the options and data it was made with, or with "
            f"resume_anyway=True if the difference is meant."
            f"{remedy(different, manifest.fingerprint)}",
        )
    logger().warning("resume_anyway: %s", text)
    return replace(found, base=None) if BASE in different else found
