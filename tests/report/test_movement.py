"""Looks at parameters become rows of layers and columns of steps."""

from __future__ import annotations

import itertools

import pytest

from counterpoint.report.movement import (
    CELLS,
    COLUMNS,
    group_chart,
    heat_map,
    last_look,
    movement_in_words,
)


def tensor(group: str = "mlp", update: float = 1e-4, **more: object) -> dict[str, object]:
    return {"group": group, "moved": 1.0, "update": update, "stuck": 0.0, **more}


def look(step: int, last: int = 0, **tensors: dict[str, object]) -> dict[str, object]:
    named = {name.replace("__", "."): one for name, one in tensors.items()}
    return {"step": step, "since": 0, "last": last, "groups": {}, "tensors": named}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("model.layers.7.mlp.up_proj.weight", "layer 7"),
        ("transformer.h.0.attn.c_attn.weight", "layer 0"),
        ("base_model.model.model.layers.12.self_attn.q_proj.lora_A.default.weight", "layer 12"),
        ("model.encoder.layers.4.fc1.weight", "encoder layer 4"),
        ("encoder.block.4.layer.0.SelfAttention.q.weight", "encoder layer 4"),
        ("decoder.block.4.layer.1.EncDecAttention.q.weight", "layer 4"),
        ("gpt_neox.layers.3.attention.dense.bias", "layer 3"),
        ("lm_head.weight", "mlp"),
    ],
)
def test_a_tensor_belongs_to_the_row_of_its_layer(name: str, row: str) -> None:
    found = heat_map([look(5, **{name: tensor()})])
    assert found is not None
    assert found.rows == (row,)


def test_embeddings_are_on_top_layers_follow_in_order_and_the_head_is_last() -> None:
    tensors = {
        "lm_head.weight": tensor("head"),
        **{f"model.layers.{n}.mlp.w": tensor() for n in (10, 2)},
        "model.embed.weight": tensor("embeddings"),
    }
    found = heat_map([look(5, **tensors)])
    assert found is not None
    assert found.rows == ("embeddings", "layer 2", "layer 10", "head")


def test_the_layers_of_an_encoder_have_rows_of_their_own_before_the_decoders() -> None:
    names = ("decoder.layers.0", "encoder.layers.10", "encoder.layers.2", "decoder.layers.10")
    tensors = {f"model.{name}.fc1.weight": tensor() for name in names}
    found = heat_map([look(10, **tensors, shared=tensor("embeddings"))])
    assert found is not None
    assert found.rows == (
        *("embeddings", "encoder layer 2", "encoder layer 10", "layer 0", "layer 10"),
    )


def test_a_cell_is_the_mean_of_the_layers_tensors() -> None:
    tensors = {
        "layers.0.a": tensor(update=1.0, moved=0.5),
        "layers.0.b": tensor(update=3.0, moved=1.0),
    }
    found = heat_map([look(20, 10, **tensors)])
    assert found is not None
    [cell] = found.cells
    assert (cell.left, cell.right, cell.value) == (10, 20, pytest.approx(0.2))
    assert cell.shown["weights that moved"] == "75.00 %"


def test_looks_far_apart_and_close_together_are_compared_by_the_step() -> None:
    looks = [
        look(1, 0, **{"layers.0.w": tensor(update=1e-4)}),
        look(101, 1, **{"layers.0.w": tensor(update=1e-2)}),
    ]
    found = heat_map(looks)
    assert found is not None
    assert [cell.value for cell in found.cells] == pytest.approx([1e-4, 1e-4])


def test_many_looks_share_columns_and_no_step_is_left_out() -> None:
    looks = [look(n + 1, n, **{"layers.0.w": tensor(update=float(n % 2))}) for n in range(1000)]
    found = heat_map(looks)
    assert found is not None
    assert len(found.cells) <= COLUMNS
    edges = sorted((cell.left, cell.right) for cell in found.cells)
    assert (edges[0][0], edges[-1][1]) == (0, 1000)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(edges))
    assert {cell.value for cell in found.cells} == {0.5}


def test_a_deep_model_has_fewer_columns_and_all_of_its_rows() -> None:
    tensors = {f"layers.{n}.w": tensor() for n in range(120)}
    found = heat_map([look(n + 1, n, **tensors) for n in range(200)])
    assert found is not None
    assert len(found.rows) == 120
    assert len(found.cells) <= CELLS
    assert {cell.row for cell in found.cells} == set(range(120))


def test_without_a_look_there_is_no_chart() -> None:
    assert heat_map([]) is None
    assert group_chart([]) is None


def test_the_table_shows_every_number_of_the_last_look() -> None:
    groups = {"head": {"update": 9e-3, "odd_one": 7}, "attention": {"update": 18e-3, "moved": 0.5}}
    titles, rows, step = last_look([{**look(9), "groups": groups}])
    assert titles == ("parameters", "weights that moved", "relative change a step", "odd one")
    assert rows == (("attention", "50.00 %", "0.002", "–"), ("head", "–", "0.001", "7"))
    assert step == 9


def test_nearly_all_is_not_shown_as_all() -> None:
    assert movement_in_words("moved", 0.99999) == "99.99 %"
    assert movement_in_words("moved", 0.00001) == "0.01 %"
    assert movement_in_words("moved", 1.0) == "100 %"
    assert movement_in_words("moved", 0.0) == "0 %"
    assert movement_in_words("update", None) == "–"
