"""What a run's reference gives each pair: a table beside a prepared set, two numbers a pair.

Tables go by the digest of the pairs, and so by what they are of: a set that is prepared again, on
another machine or by a resumed run, finds its own. On disk they lie in the cache, under a key that
says the pairs, the reference's weights and how they were run.

Not here: asking the reference (``step.references``), loading it (``models.reference``).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from counterpoint.config import CPOConfig
from counterpoint.data import cache
from counterpoint.data.batching import KeyedPairs
from counterpoint.data.pair_columns import trained_columns
from counterpoint.errors import DataError
from counterpoint.log import logger
from counterpoint.objectives import INITIAL, LOSSES
from counterpoint.records import TokenPair

Table = npt.NDArray[np.float64]
"""Summed log-probabilities of chosen and rejected, in nats, ``[pairs, 2]``, in the set's order.

They are summed as the loss sums: with ``ld_alpha`` tokens past the shorter completion weigh less.
"""


class ReferencedPairs(KeyedPairs):
    """Prepared pairs by key, each with what the reference gives it, once that is known.

    Args:
        rows: prepared pairs, indexable by lists of numbers.
        to_pair: from a prepared row to a ``TokenPair``.
        tables: by the digest of their pairs; filled before pairs are read for a loss.
        digest: of these pairs.
    """

    def __init__(
        self,
        rows: Any,
        to_pair: Callable[[Mapping[str, Any]], TokenPair],
        tables: Mapping[str, Table],
        digest: str,
    ) -> None:
        super().__init__(rows, to_pair)
        self.tables, self.digest = tables, digest

    def __getitems__(self, keys: list[int]) -> list[TokenPair]:
        """A micro-batch of pairs, read at once."""
        pairs = super().__getitems__(keys)
        table = self.tables.get(self.digest)
        if table is None:
            return pairs
        said = table[[key if key >= 0 else ~key for key in keys]].tolist()
        return [
            replace(pair, reference=(chosen, rejected))
            for pair, (chosen, rejected) in zip(pairs, said, strict=True)
        ]


class ReferenceTables:
    """The tables of a run; one whose loss compares with nothing has none, and pays nothing.

    Args:
        wanted: the option ``reference``: ``INITIAL``, or the name of a model; "": none.
        digest_of: the digest of prepared pairs.
        ld_alpha: what tokens past the shorter completion weigh in the tables' sums; None: 1.
    """

    def __init__(
        self, wanted: str, digest_of: Callable[[Any], str], ld_alpha: float | None = None
    ) -> None:
        self.wanted, self._digest_of, self.ld_alpha = wanted, digest_of, ld_alpha
        self.tables: dict[str, Table] = {}
        self._digests: dict[int, tuple[Any, str]] = {}

    @classmethod
    def of(cls, args: CPOConfig, digest_of: Callable[[Any], str]) -> ReferenceTables:
        """Those of a run.

        Args:
            args: its options.
            digest_of: the digest of prepared pairs.
        """
        needed = LOSSES[args.loss_type].needs_reference
        return cls(args.reference if needed else "", digest_of, args.ld_alpha)

    def keyed(self, pairs: Any, to_pair: Callable[[Mapping[str, Any]], TokenPair]) -> KeyedPairs:
        """Prepared pairs by key, with what the reference gives each, if there is one.

        Args:
            pairs: prepared.
            to_pair: makes a pair of one of their rows.
        """
        rows = trained_columns(pairs)
        if not self.wanted:
            return KeyedPairs(rows, to_pair)
        return ReferencedPairs(rows, to_pair, self.tables, self.digest(pairs))

    def digest(self, pairs: Any) -> str:
        """The digest of prepared pairs, taken once."""
        kept = self._digests.get(id(pairs))
        if kept is None or kept[0] is not pairs:
            kept = self._digests[id(pairs)] = pairs, self._digest_of(pairs)
        return kept[1]

    def missing(self, sets: Iterable[Any]) -> dict[str, Any]:
        """The sets that have no table yet, by their digests.

        Args:
            sets: prepared pairs.

        Raises:
            DataError: CP240 for a streamed one.
        """
        found: dict[str, Any] = {}
        for pairs in sets if self.wanted else ():
            self.refuse_stream(pairs)
            digest = self.digest(pairs)
            if digest not in self.tables:
                found[digest] = pairs
        return found

    def refuse_stream(self, pairs: Any, name: str = "a data set") -> None:
        """Refuse pairs that a reference cannot be shown before they are trained on.

        Args:
            pairs: prepared.
            name: of the set.

        Raises:
            DataError: CP240 for a stream.
        """
        if self.wanted and not hasattr(pairs, "__len__"):
            raise DataError(
                "CP240",
                f"{name} is streamed, but a reference is asked for every pair before the first "
                "step, and a stream is not known to its end. Load the set whole, or choose a loss "
                "without a reference, such as simpo.",
            )

    def restart(self, *, anew: bool = True) -> None:
        """A training begins.

        Args:
            anew: it does not resume: its initial policy is the model as it is now.
        """
        if anew and self.wanted == INITIAL:
            self.tables.clear()

    def state_dict(self) -> dict[str, Any] | None:
        """For a checkpoint: of which reference the tables are, and the tables."""
        if not self.wanted:
            return None
        tables = {digest: torch.from_numpy(np.array(one)) for digest, one in self.tables.items()}
        return {"reference": self.wanted, "ld_alpha": self.ld_alpha, "tables": tables}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Resume with a checkpoint's; what ``resume_anyway`` would read otherwise is left out.

        Args:
            state: of the run that is resumed; None where its loss compared with nothing.
        """
        self.tables.clear()
        if state is None or state["reference"] != self.wanted:
            return
        if state.get("ld_alpha") == self.ld_alpha:  # up to 0.4 no such weight was read here
            self.tables.update({name: one.numpy() for name, one in state["tables"].items()})


def kept_table(key: str, pairs: int) -> Table | None:
    """A table of the cache, mapped; None where there is none, or one that is damaged.

    Args:
        key: says all that it follows from.
        pairs: how many it must be of.
    """
    home = cache.folder()
    path = None if home is None else _file(home, key)
    if path is None or not path.is_file():
        return None
    try:
        found: Table = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.shape == (pairs, 2) and found.dtype == np.float64:
            return found
        reason: object = f"it holds {found.dtype} of shape {found.shape}"
    except (OSError, ValueError, EOFError) as error:
        reason = error
    logger().warning("A damaged file in the cache, %s, is made anew: %s", path, reason)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def keep_table(key: str, table: Table) -> None:
    """Put a table into the cache, whole or not at all.

    Args:
        key: as for ``kept_table``.
        table: of any number of pairs.
    """
    home = cache.folder()
    if home is None:
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key[:8]}-", dir=home) as scratch:
            part = Path(scratch) / "part.npy"
            with part.open("wb") as file:
                np.save(file, table, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, _file(home, key))
    except OSError as error:
        logger().warning("What the reference said could not be kept in %s: %s", home, error)


def _file(home: Path, key: str) -> Path:
    return home / f"reference-{key}.npy"
