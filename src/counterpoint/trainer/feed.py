"""A run's data sets: prepared once, accounted for, dealt out window by window.

Not here: what a row becomes (``data.prepare``) and which pairs make a step (``data.sampler``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.data.batching import DealtStream, KeyedPairs, PairLoader
from counterpoint.data.counts import PARTS, PrepareCounts
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_digest import pairs_digest
from counterpoint.data.prepare import PAIR_COLUMNS, Prepared, iter_pairs, prepare, to_pair
from counterpoint.data.sampler import StepSampler
from counterpoint.data.sources import pick_split
from counterpoint.forward.rows import beyond_embedding
from counterpoint.records import TokenPair


class Feed:
    """Raw data sets in, loaders of ``TokenPair`` out.

    Args:
        args: the run's options.
        tokenizer: with EOS and pad token.
    """

    def __init__(self, args: CPOConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.options = PrepareOptions.of(args)
        self._prepared: dict[str, Prepared] = {}
        self._reading: Prepared | None = None
        self._done = 0
        """Rows of the training stream that the next pass of a resumed run leaves out."""

    def train_pairs(self, dataset: Any) -> Any:
        """Prepared training pairs of raw rows; of several splits, the one named train."""
        if isinstance(dataset, Mapping):
            dataset = pick_split(dataset, "train")
        return self.pairs(dataset, "train")

    def pairs(self, dataset: Any, name: str) -> Any:
        """Prepared pairs of raw rows, of each of a dict of sets, or of themselves.

        Args:
            dataset: raw or prepared rows, a dict of named sets, or None.
            name: the set's name in messages and in the run log.

        Raises:
            DataError: CP2xx for rows that are not pairs.
        """
        if dataset is None or self._is_prepared(dataset):
            return dataset
        if isinstance(dataset, Mapping):
            return {key: self.pairs(rows, f"{name} {key}") for key, rows in dataset.items()}
        self._prepared[name] = prepare(dataset, self.tokenizer, self.options, name=name)
        return self._prepared[name].pairs

    def _is_prepared(self, dataset: Any) -> bool:
        # a stream need not know its columns
        own = any(dataset is prepared.pairs for prepared in self._prepared.values())
        return own or set(PAIR_COLUMNS) <= set(_columns(dataset))

    def check_ids(self, pairs: Any, vocab_size: int | None) -> None:
        """Refuse ids beyond the embedding before anything is written; streams are checked later.

        Args:
            pairs: prepared pairs, from ``pairs``.
            vocab_size: rows of the model's embedding; None leaves ids unchecked.

        Raises:
            ModelError: CP303, with a row that has such an id.
        """
        if isinstance(pairs, Mapping):
            for each in pairs.values():
                self.check_ids(each, vocab_size)
            return
        if not isinstance(pairs, Dataset):
            return
        if vocab_size is None or len(self.tokenizer) <= vocab_size:
            return
        table = pairs.with_format("arrow")[:]
        for part in PARTS:
            highest = pc.max(pc.list_flatten(table.column(f"{part}_ids"))).as_py()
            if highest is not None and highest >= vocab_size:
                raise beyond_embedding(highest, vocab_size)

    def counts(self) -> dict[str, PrepareCounts]:
        """What became of the rows of each set; a stream's fill up while it is read."""
        return {name: prepared.counts for name, prepared in self._prepared.items()}

    def some(self, pairs: Any, count: int) -> list[TokenPair]:
        """A few pairs of a set, of different prompts and the same each time.

        Args:
            pairs: prepared pairs, from ``pairs``.
            count: most pairs, at least 1.

        Returns:
            Pairs spread evenly over the set; of a stream its first ones.
        """
        found = self.spread(pairs, count)
        return list({tuple(pair.prompt): pair for pair in found}.values())

    def spread(self, pairs: Any, count: int) -> list[TokenPair]:
        """Pairs spread evenly over a set, the same each time; of a stream its first ones.

        Args:
            pairs: prepared pairs, from ``pairs``.
            count: most pairs, at least 1.
        """
        if hasattr(pairs, "__len__"):
            most = min(count, len(pairs))
            places = [place * len(pairs) // most for place in range(most)]
            return KeyedPairs(_trained(pairs), to_pair).__getitems__(places)
        # counts of its own: the run's are of whole passes
        fresh = Prepared(pairs, PrepareCounts("samples"), self.options)
        return list(islice(iter_pairs(fresh), count))

    def loader(self, pairs: Any, name: str, *, micro_batch: int, train: bool) -> PairLoader:
        """This rank's pairs, window by window.

        Args:
            pairs: prepared pairs, from ``pairs``.
            name: the set's name.
            micro_batch: most pairs of a window.
            train: shuffle, and deal in steps of several windows.
        """
        args = self.args
        share = {
            "micro_batch": micro_batch,
            "accumulation": args.gradient_accumulation_steps if train else 1,
            "ranks": args.world_size,
            "rank": args.process_index,
        }
        # of its own: torch draws seeds of workers that draw nothing, which must not move dropout
        generator = torch.Generator()
        if not hasattr(pairs, "__len__"):
            stream = self._stream(pairs, name)
            read = partial(self._read, stream) if train else partial(iter_pairs, stream)
            return PairLoader(DealtStream(read, **share), batch_size=None, generator=generator)
        sampler = StepSampler(
            len(pairs),
            **share,
            seed=self.seed() if train else None,
            drop_last=train and args.dataloader_drop_last,
        )
        return PairLoader(
            KeyedPairs(_trained(pairs), to_pair),
            batch_sampler=sampler,
            collate_fn=list,
            generator=generator,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            # newer releases of transformers only
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
        )

    def digest(self, pairs: Any) -> str:
        """The digest of prepared pairs; "a stream" for one. Those prepared here have it already."""
        if not isinstance(pairs, Dataset):
            return "a stream"
        here = (one.counts.digest for one in self._prepared.values() if one.pairs is pairs)
        known = next(here, None)
        return pairs_digest(pairs) if known is None else known.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the streams, as a tree of ``checkpoint.tree``.

        Returns:
            ``rows`` read of the running pass over the training stream, and the ``counts`` of each
            stream; nothing of sets that are not streamed.
        """
        streams = {n: p for n, p in self._prepared.items() if not isinstance(p.pairs, Dataset)}
        counts = {name: one.counts.state_dict() for name, one in streams.items()}
        return {"rows": self._reading.progress.rows if self._reading else 0, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any], *, within_pass: bool) -> None:
        """Resume where a run was; see ``state_dict``.

        Args:
            state: of the run.
            within_pass: whether its pass over the training stream is resumed, or a new one begins.
        """
        self._done = state["rows"] if within_pass else 0
        for name, kept in state["counts"].items():
            if name in self._prepared:
                self._prepared[name].counts.load_state_dict(kept)

    def _read(self, stream: Prepared) -> Iterator[TokenPair]:
        """The next pass over the training stream."""
        self._reading, done, self._done = stream, self._done, 0
        return iter_pairs(stream, after=done)

    def seed(self) -> int | None:
        """Of the order of pairs; None where it is that of the data set."""
        if self.args.train_sampling_strategy == "sequential":
            return None
        own: int | None = self.args.data_seed
        return int(self.args.seed) if own is None else own

    def _stream(self, pairs: Any, name: str) -> Prepared:
        known = self._prepared.get(name)
        if known is None or known.pairs is not pairs:
            return Prepared(pairs, PrepareCounts.under(self.options, name), self.options)
        return known


def _trained(pairs: Any) -> Any:
    """The columns that are trained on alone: reading others would take time for nothing."""
    return pairs.select_columns(list(PAIR_COLUMNS)) if isinstance(pairs, Dataset) else pairs


def _columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    # a dict of sets has a dict of names
    return names if isinstance(names, list) else []
