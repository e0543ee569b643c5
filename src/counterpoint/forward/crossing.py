"""Text that looks at pictures in layers of its own, through cross-attention (Llama 3.2 Vision).

What transformers makes of a batch there is not what it makes of its rows one by one:

1. A row without pictures goes through those layers where others of its batch show some. Alone it
   does not.
2. What stands before the first picture of a row looks at all that the row may look at, and so at
   what fills it up to the row with the most pictures.

Here each token looks at what it would look at were its completion alone: at its own pictures, from
their places on; before the first place at all of them, as the model has it. In those layers each
stretch of tokens that look at the same pictures is a row, and other tokens are not in them. So rows
may show different numbers of pictures, and one row may hold several pairs.

Not here: what the tower is given, and when the hooks are open (``seeing``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoint.forward.shared_attention import KEYWORD
from counterpoint.forward.shown import RowsShown


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a row within which tokens look at the same pictures.

    Args:
        row: of the batch.
        start: its first token.
        end: the token after its last one.
        marks: where in the row each picture stands, in order; at least one.
        pictures: the number of each among those that the tower was given.
    """

    row: int
    start: int
    end: int
    marks: tuple[int, ...]
    pictures: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """Which pictures the tokens of some stretches look at; each stretch is a row of its own here.

    Args:
        places: of the tokens of each stretch in the batch, row after row; a shorter stretch ends
            with its last one again and again.
        real: whether a token is one of the stretch's, and not such a repetition.
        picks: the pictures of each stretch; the number after the last picture is none.
        seen: which tiles of those a token looks at.
        behind: whether a token stands behind a picture; the others look at all.
    """

    places: Int[Tensor, "stretches longest"]
    real: Bool[Tensor, "stretches longest"]
    picks: Int[Tensor, "stretches most"]
    seen: Bool[Tensor, "stretches longest most tiles"]
    behind: Bool[Tensor, "stretches longest"]

    @classmethod
    def of(
        cls, stretches: Sequence[Stretch], tiles: Bool[Tensor, "pictures tiles"], width: int
    ) -> Crossing:
        """What each token looks at, on the CPU.

        Args:
            stretches: those that show pictures; at least one.
            tiles: which tiles of a picture are of it; the others fill it up.
            width: of the rows of the batch.
        """
        longest = max(one.end - one.start for one in stretches)
        most = max(len(one.pictures) for one in stretches)
        first = torch.tensor([one.row * width + one.start for one in stretches])[:, None]
        last = torch.tensor([one.end - one.start - 1 for one in stretches])[:, None]
        steps = torch.arange(longest)[None]
        picks = torch.full((len(stretches), most), len(tiles))
        seen = torch.zeros(len(stretches), longest, most, tiles.shape[1], dtype=torch.bool)
        own = torch.zeros(len(stretches), 1, most, 1, dtype=torch.bool)
        for row, one in enumerate(stretches):
            picks[row, : len(one.pictures)] = torch.tensor(one.pictures)
            own[row, :, : len(one.pictures)] = True
            for place, (number, span) in enumerate(zip(one.pictures, _spans(one), strict=True)):
                seen[row, span, place] = tiles[number]
        behind = seen.flatten(2).any(2)
        seen = torch.where(behind[..., None, None], seen, own)
        return cls(first + steps.minimum(last), steps <= last, picks, seen, behind)

    def to(self, device: torch.device) -> Crossing:
        """The same on another device."""
        return Crossing(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def states(self, said: Float[Tensor, "tiles_of_all patches width"]) -> Tensor:
        """What the tower says of the pictures of each stretch, ``[stretches, keys, width]``.

        Args:
            said: of each tile, picture after picture.
        """
        each = said.reshape(-1, self.seen.shape[3] * said.shape[1], said.shape[2])
        none = each.new_zeros(1, *each.shape[1:])
        return torch.cat([each, none])[self.picks].flatten(1, 2)

    def mask(self, said: Float[Tensor, "tiles_of_all patches width"]) -> Tensor:
        """What is added to the scores of each token and key, ``[stretches, 1, longest, keys]``.

        Args:
            said: as for ``states``.
        """
        seen = self.seen.repeat_interleave(said.shape[1], 3).flatten(2)[:, None]
        lowest = torch.finfo(said.dtype).min
        return torch.zeros_like(seen, dtype=said.dtype).masked_fill(~seen, lowest)

    def taken(self, states: Float[Tensor, "rows tokens width"]) -> Tensor:
        """The states of the stretches' tokens, ``[stretches, longest, width]``.

        Args:
            states: of the batch.
        """
        return states.flatten(0, 1)[self.places]

    def put_back(
        self,
        states: Float[Tensor, "rows tokens width"],
        made: Float[Tensor, "stretches longest width"],
    ) -> Float[Tensor, "rows tokens width"]:
        """The states of the batch with those of the stretches' tokens made anew.

        Args:
            states: of the batch.
            made: of the stretches.
        """
        flat = states.flatten(0, 1)
        return flat.index_put((self.places[self.real],), made[self.real]).view_as(states)


def _spans(one: Stretch) -> list[slice]:
    """The tokens that look at each picture: up to the next one, or with it where it follows."""
    ends = [*one.marks[1:], one.end]
    for place in range(len(ends) - 2, -1, -1):
        if ends[place] == one.marks[place] + 1:
            ends[place] = ends[place + 1]
    spans = zip(one.marks, ends, strict=True)
    return [slice(start - one.start, end - one.start) for start, end in spans]


def marks_in(prompt: Sequence[int], token_id: int, start: int = 0) -> tuple[int, ...]:
    """Where in a row the pictures of a prompt stand.

    Args:
        prompt: its ids.
        token_id: the one that stands for a picture.
        start: where in the row the prompt begins.
    """
    return tuple(start + place for place, one in enumerate(prompt) if one == token_id)


def crossing_of(look: RowsShown, named: Mapping[str, Tensor], token_id: int) -> Crossing:
    """Which pictures the tokens of a batch look at.

    Args:
        look: what its rows show.
        named: what the model is called with, the tower's inputs among it.
        token_id: as for ``marks_in``.
    """
    ids, numbers, pairs = named["input_ids"], look.numbers, list(look.pairs)
    rows = [(s.row, s.start, s.start + s.tokens) for s in look.segments]
    if not rows:
        pairs *= len(pairs[0].completions)
        rows = [(row, 0, ids.shape[1]) for row in range(len(ids))]
    stretches = []
    for (row, start, end), pair in zip(rows, pairs, strict=True):
        its, numbers = tuple(numbers[: len(pair.seen)]), numbers[len(pair.seen) :]
        if its:
            stretches.append(Stretch(row, start, end, marks_in(pair.prompt, token_id, start), its))
    tiles = named["aspect_ratio_mask"][:, 0].bool().cpu()
    return Crossing.of(stretches, tiles, ids.shape[1]).to(ids.device)


@contextmanager
def crossing(text: Any, now: Callable[[], Crossing | None]) -> Iterator[None]:
    """While open, the layers of a model that look at pictures look at what ``now`` says.

    Args:
        text: the part of a model that reads, with its layers.
        now: what the running call shows; None for none.
    """

    def before(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
        look = now()
        if look is None:
            return args, named
        said = named["cross_attention_states"]
        changed = {
            "cross_attention_states": look.states(said),
            "cross_attention_mask": look.mask(said),
            "full_text_row_masked_out_mask": look.behind[:, None, :, None].to(said.dtype),
        }
        return args, {**named, **changed}

    waiting: list[Tensor] = []

    def before_layer(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
        look = now()
        if look is None:
            return args, named
        waiting.append(args[0])
        # the layout's keyword is for attention within the text
        return (look.taken(args[0]),), {n: one for n, one in named.items() if n != KEYWORD}

    def after_layer(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        look = now()
        return output if look is None else look.put_back(waiting.pop(), output)

    with ExitStack() as stack:
        stack.callback(text.register_forward_pre_hook(before, with_kwargs=True).remove)
        for layer in text.layers:
            if hasattr(layer, "cross_attn"):
                hook = layer.register_forward_pre_hook(before_layer, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(layer.register_forward_hook(after_layer).remove)
        yield
