"""Text that looks at pictures in layers of its own: who looks at what, and why it is told."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from counterpoint.forward.crossing import Crossing, Stretch, marks_in
from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED
from counterpoint.forward.pair_forward import pair_forward
from tests.float64 import Float64Throughout
from tests.forward.test_seeing import alone
from tests.vision_on_the_spot import ROWS, seen_pairs, seer

IMAGE, LENGTH = 9, 7


@pytest.mark.parametrize("pictures", [1, 2, 3, 4])
def test_each_token_looks_at_what_the_processor_says(pictures: int) -> None:
    tiles = [1 + number % 3 for number in range(pictures)]
    of_it = torch.arange(3)[None] < torch.tensor(tiles)[:, None]
    for marks in combinations(range(LENGTH), pictures):
        ids = [IMAGE if place in marks else 5 for place in range(LENGTH)]
        assert marks_in(ids, IMAGE) == marks
        stretch = Stretch(0, 0, LENGTH, marks, tuple(range(pictures)))
        look = Crossing.of([stretch], of_it, LENGTH)
        theirs = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(ids, IMAGE)], [tiles], 3, LENGTH
        )
        assert (look.seen & look.behind[..., None, None]).long().tolist() == theirs.tolist()
        assert look.real.all()
        # as the model has it, what stands before the first picture looks at everything
        assert look.seen[0, : marks[0]].all()


def test_a_stretch_looks_at_its_own_pictures_and_other_tokens_are_left() -> None:
    tiles = torch.ones(2, 1, dtype=torch.bool)
    stretches = [Stretch(0, 0, 3, (1,), (1,)), Stretch(1, 5, 7, (5, 6), (0, 1))]
    look = Crossing.of(stretches, tiles, 8)
    assert look.places.tolist() == [[0, 1, 2], [13, 14, 14]]
    assert look.real.long().tolist() == [[1, 1, 1], [1, 1, 0]]
    assert look.picks.tolist() == [[1, 2], [0, 1]]
    assert look.behind.long().tolist() == [[0, 1, 1], [1, 1, 0]]
    assert look.seen[0, :, :, 0].long().tolist() == [[1, 0]] * 3
    assert look.seen[1, :2, :, 0].long().tolist() == [[1, 0], [1, 1]]
    said = torch.arange(8.0).reshape(2, 2, 2)  # two pictures of one tile of two patches
    assert look.states(said)[0].tolist() == [[4, 5], [6, 7], [0, 0], [0, 0]]
    lowest = torch.finfo(torch.float32).min
    assert look.mask(said)[0, 0, 0].tolist() == [0, 0, lowest, lowest]
    states = torch.arange(16.0).reshape(2, 8, 1).requires_grad_()
    taken = look.taken(states)
    assert taken[..., 0].tolist() == [[0, 1, 2], [13, 14, 14]]
    back = look.put_back(states, -taken)
    assert back[0, :, 0].tolist() == [0, -1, -2, 3, 4, 5, 6, 7]
    assert back[1, :, 0].tolist() == [8, 9, 10, 11, 12, -13, -14, 15]
    back.sum().backward()
    assert states.grad is not None
    assert states.grad.flatten().tolist() == [-1] * 3 + [1] * 10 + [-1] * 2 + [1]


def test_transformers_own_batch_is_not_its_rows() -> None:
    """Should a release of transformers mend this, the hooks are to be looked at again."""
    made = seer("mllama", torch.float64)
    model, (shown, text) = made[0], seen_pairs(made)[:2]
    assert shown.seen
    assert not text.seen
    with Float64Throughout(), torch.no_grad():
        own = alone(made, text, text.chosen)
        ids = torch.tensor([[*text.prompt, *text.chosen]])
        both = torch.cat([torch.full_like(ids, shown.prompt[0]), ids])
        named = {name: torch.cat([one, torch.zeros_like(one)]) for name, one in _inputs(shown)}
        mask = torch.zeros(2, ids.shape[1], 1, 4, dtype=torch.long)
        mask[0] = 1  # the other row looks at the picture, and this one at none
        logits = model(input_ids=both, cross_attention_mask=mask, use_cache=False, **named).logits
        logps = logits[1].log_softmax(-1)[len(text.prompt) - 1 : -1]
        found = logps.gather(1, torch.tensor(text.chosen)[:, None]).sum()
        assert abs(float(found / own) - 1) > 1e-2
        for layout in (PICTURES_TWICE, PADDED, SHARED):
            with layout.running(model):
                output = pair_forward(model, find_head(model), layout.collate([shown, text]))
            assert torch.allclose(output.logps.chosen[1], own, rtol=1e-12, atol=0)


def _inputs(pair):
    return pair.seen[0].inputs.items()


def test_a_picture_that_is_shown_twice_is_looked_at_twice() -> None:
    made = seer("mllama", torch.float64)
    rows = (((0, 0, 1), "Which of them?", "The first.", "None"), *ROWS[2:4])
    pairs = seen_pairs(made, rows)
    with Float64Throughout(), torch.no_grad():
        truth = torch.stack([alone(made, pair, pair.chosen, rows) for pair in pairs])
        for layout in (PICTURES_TWICE, PADDED, SHARED):
            with layout.running(made[0]):
                found = pair_forward(made[0], find_head(made[0]), layout.collate(pairs)).logps
            assert torch.allclose(found.chosen, truth, rtol=1e-12, atol=0)
