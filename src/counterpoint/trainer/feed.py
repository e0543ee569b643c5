"""A run's data sets: prepared once, accounted for, dealt out window by window.

Not here: what a row becomes (``data.prepare``) and which pairs make a step (``data.sampler``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset

from counterpoint.config import CPOConfig
from counterpoint.data.batching import DealtStream, PairLoader
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.encoder import Encoder
from counterpoint.data.gold import as_read
from counterpoint.data.lanes import LanedStream, StreamPlace
from counterpoint.data.options import PrepareOptions
from counterpoint.data.order import LISTS_TOGETHER, WRITTEN_OUT, Order
from counterpoint.data.pair_columns import has_pair_columns
from counterpoint.data.pair_digest import ROWS_AT_ONCE, pairs_digest
from counterpoint.data.prepare import Prepared, iter_pairs, lane_reader, lanes_in_a_row, prepare
from counterpoint.data.referenced import ReferenceTables
from counterpoint.data.sampler import StepSampler
from counterpoint.data.sources import pick_split
from counterpoint.forward.one_prompt import asks
from counterpoint.forward.rows import EmbeddingRows, beyond_embedding
from counterpoint.preference_row import GOLD, PARTS
from counterpoint.records import TokenPair


class Feed:
    """Raw data sets in, loaders of ``TokenPair`` out.

    Args:
        args: the run's options.
        encoder: of their rows.
    """

    def __init__(self, args: CPOConfig, encoder: Encoder[Any]) -> None:
        self.args, self.encoder, self.begun = args, encoder, encoder.start_tokens
        self.to_pair = encoder.pair
        self.options = PrepareOptions.of(args)
        self.references = ReferenceTables.of(args, self.digest)
        self._prepared: dict[str, Prepared] = {}
        self._reading: Prepared | None = None
        self._done = 0
        """Rows of the training stream that the next pass of a resumed run leaves out."""
        self._order_version = LISTS_TOGETHER
        self._lanes: StreamPlace | None = None
        self._resumed_lanes: StreamPlace | None = None

    def train_pairs(self, dataset: Any) -> Any:
        """Prepared training pairs of raw rows; of several splits, the one named train."""
        rows = pick_split(dataset, "train") if isinstance(dataset, Mapping) else dataset
        return self.pairs(rows, "train")

    def pairs(self, dataset: Any, name: str, *, options: PrepareOptions | None = None) -> Any:
        """Prepared pairs of raw rows, of each of a dict of sets, or of themselves.

        Args:
            dataset: raw or prepared rows, a dict of named sets, or None.
            name: the set's name in messages and in the run log.
            options: how rows are read; None: as the run does.

        Raises:
            DataError: CP2xx for rows that are not pairs.
        """
        if dataset is None or self._is_prepared(dataset):
            return as_read(dataset, gold=(options or self.options).gold)
        if isinstance(dataset, Mapping):
            return {key: self.pairs(rows, f"{name} {key}") for key, rows in dataset.items()}
        self._prepared[name] = prepare(dataset, self.encoder, options or self.options, name=name)
        self.references.refuse_stream(self._prepared[name].pairs, name)
        return self._prepared[name].pairs

    def _is_prepared(self, dataset: Any) -> bool:
        own = any(dataset is prepared.pairs for prepared in self._prepared.values())
        return own or has_pair_columns(dataset)

    def check_ids(self, pairs: Any, known: EmbeddingRows | None) -> None:
        """Refuse ids beyond the embedding before anything is written; streams are checked later.

        Args:
            pairs: prepared pairs, from ``pairs``.
            known: rows of the model's embeddings; None leaves ids unchecked.

        Raises:
            ModelError: CP303, with a row that has such an id.
        """
        if isinstance(pairs, Mapping):
            for each in pairs.values():
                self.check_ids(each, known)
            return
        if not isinstance(pairs, Dataset) or known is None:
            return
        if known.read == known.written >= len(self.encoder.tokenizer):
            return
        # a prompt ends with what the decoder begins with; a batch's are looked at again, exactly
        limits = dict.fromkeys((*PARTS, GOLD), known.written) | {"prompt": max(known)}
        for table in pairs.with_format("arrow").iter(ROWS_AT_ONCE):
            for part in (part for part in limits if f"{part}_ids" in table.column_names):
                highest = pc.max(pc.list_flatten(table.column(f"{part}_ids"))).as_py()
                if highest is not None and highest >= limits[part]:
                    raise beyond_embedding(highest, limits[part])

    def counts(self) -> dict[str, PrepareCounts]:
        """What became of the rows of each set; a stream's fill up while it is read."""
        return {name: prepared.counts for name, prepared in self._prepared.items()}

    def some(self, pairs: Any, count: int) -> list[TokenPair]:
        """A few pairs of a set, of different prompts or pictures and the same each time.

        Args:
            pairs: prepared pairs, from ``pairs``.
            count: most pairs, at least 1.

        Returns:
            Pairs spread evenly over the set; of a stream its first ones.
        """
        found = self.spread(pairs, count)
        return list({asks(pair): pair for pair in found}.values())

    def spread(self, pairs: Any, count: int) -> list[TokenPair]:
        """Pairs spread evenly over a set, the same each time; of a stream its first ones.

        Args:
            pairs: prepared pairs, from ``pairs``.
            count: most pairs, at least 1.
        """
        if hasattr(pairs, "__len__"):
            most = min(count, len(pairs))
            places = [place * len(pairs) // most for place in range(most)]
            return self.references.keyed(pairs, self.to_pair).__getitems__(places)
        # counts of its own: the run's are of whole passes
        fresh = Prepared(pairs, PrepareCounts("samples"), self.options, start_tokens=self.begun)
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
            "step_pairs": args.step_pairs if train else micro_batch * args.world_size,
            "ranks": args.world_size,
            "rank": args.process_index,
        }
        # of its own: torch draws seeds of workers that draw nothing, which must not move dropout
        generator = torch.Generator()
        if not hasattr(pairs, "__len__"):
            stream, lanes = self._stream(pairs, name), args.stream_shards
            if lanes > 1 and train:
                stream.counts.digest = None
                pull = lane_reader(stream, lanes)
                laned = LanedStream(
                    pull, lanes, partial(self._begin, stream), stream.counts, **share
                )
                return PairLoader(laned, batch_size=None, generator=generator)
            if train:
                read = partial(self._read, stream)
            elif 1 < lanes <= getattr(pairs, "num_shards", 1):
                read = partial(lanes_in_a_row, stream, lanes)
            else:
                read = partial(iter_pairs, stream)
            return PairLoader(DealtStream(read, **share), batch_size=None, generator=generator)
        sampler = StepSampler(
            self._stream(pairs, name).places if train else len(pairs),
            **share,
            orders=self.orders(pairs, name) if train else None,
            drop_last=train and args.dataloader_drop_last,
        )
        return PairLoader(
            self.references.keyed(pairs, self.to_pair),
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
        here = [one for one in self._prepared.values() if one.pairs is pairs]
        digest = here[0].counts.digest if here else None
        found = pairs_digest(pairs) if digest is None else digest.hexdigest()
        return f"{found} as {here[0].mix}" if here and here[0].mix else found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the streams, as a tree of ``checkpoint.tree``.

        Returns:
            ``rows`` read of the running pass over the training stream, the ``counts`` of each
            stream, the place of one in ``lanes``, and the version of the ``order`` of sets that are
            not streamed.
        """
        streams = {n: p for n, p in self._prepared.items() if not isinstance(p.pairs, Dataset)}
        counts = {name: one.counts.state_dict() for name, one in streams.items()}
        return {
            "rows": self._reading.progress.rows if self._reading else 0,
            "counts": counts,
            "order": self._order_version,
            "lanes": None if self._lanes is None else self._lanes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, within_pass: bool) -> None:
        """Resume where a run was; see ``state_dict``.

        Args:
            state: of the run.
            within_pass: whether its pass over the training stream is resumed, or a new one begins.
        """
        self._done = state["rows"] if within_pass else 0
        self._order_version = state.get("order", WRITTEN_OUT)  # up to 0.4 it did not say
        lanes = state.get("lanes") if within_pass else None
        self._resumed_lanes = None if lanes is None else StreamPlace(**lanes)
        for name, kept in state["counts"].items():
            if name in self._prepared:
                self._prepared[name].counts.load_state_dict(kept)

    def _read(self, stream: Prepared) -> Iterator[TokenPair]:
        """The next pass over the training stream."""
        self._reading, done, self._done = stream, self._done, 0
        return iter_pairs(stream, after=done)

    def _begin(self, stream: Prepared) -> StreamPlace:
        """Where the next pass over a training stream in lanes begins."""
        found, self._resumed_lanes = self._resumed_lanes, None
        if found is None:
            found = StreamPlace.first(self.args.stream_shards, counted=stream.counts.rows == 0)
        self._lanes = found
        return found

    def orders(self, pairs: Any, name: str = "") -> Callable[[int], Order]:
        """The order of each pass over a set, in the version that the run has by then.

        Args:
            pairs: prepared pairs, from ``pairs``.
            name: of the set; without it lists and weights of sets are left out of account.
        """
        known = self._stream(pairs, name)
        return lambda number: known.order(self.seed(), number, version=self._order_version)

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
