"""How cost grows: the arithmetic, the table and the drawing, from made-up results."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import growth
import pytest
import step


def _row(axis: str, value: int, trl: float, ours: float) -> dict:
    def side(cost: float) -> dict:
        return {
            "seconds": cost,
            "min": 0.9 * cost,
            "max": 1.1 * cost,
            "peak_mb": 100 * cost,
            "peak_mb_min": 95 * cost,
            "peak_mb_max": 105 * cost,
        }

    return {"parameters": value, axis: value, "trl": side(trl), "counterpoint": side(ours)}


RESULTS = {
    "axes": {
        "prompt": [_row("prompt", 16, 2, 1), _row("prompt", 128, 3, 2), _row("prompt", 256, 12, 4)],
        "model": [_row("model", 10**6, 1, 1), _row("model", 4 * 10**6, 8, 2)],
    }
}


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_power_of_the_axis_is_found_again(power):
    values = [3, 5, 20]
    assert growth.growth(values, [7 * x**power for x in values]) == pytest.approx(power)


def test_a_cost_too_small_to_be_seen_has_no_growth():
    assert math.isnan(growth.growth([1, 2], [0, 5]))


def test_every_text_has_as_many_tokens_as_its_point_says():
    point = growth.Point(prompt=7, completion=4)
    tokenizer = growth.tokenizer()
    rows = growth.rows_at(point, 3)
    lengths = {part: {len(tokenizer(row[part]).input_ids) for row in rows} for part in rows[0]}
    assert lengths == {"prompt": {7}, "chosen": {3}, "rejected": {3}}  # EOS is the fourth


@pytest.mark.slow
@pytest.mark.skipif(not step.CLEARS_PEAK.exists(), reason="needs Linux")
def test_a_point_is_measured_in_a_process_of_its_own(tmp_path):
    growth.tokenizer().save_pretrained(tmp_path / "tokenizer")
    point = growth.Point(pairs=2, prompt=9, completion=5, vocabulary=4096, width=128, layers=1)
    work = json.dumps({"bf16": False, "steps": 2, **asdict(point)})
    run = step.in_own_process(growth.__file__, "counterpoint", work, str(tmp_path))
    assert len(run["seconds"]) == 2
    assert min(run["seconds"]) > 0
    # embedding; attention with two heads for one of keys; the gated layer; norms
    layers = 3 * 128 * 128 + 3 * 128 * 352 + 2 * 128 + 2 * 64 + 128
    assert run["parameters"] == 4096 * 128 + layers
    # logits of 20 tokens are a third of a megabyte; importing took hundreds
    assert run["peak_mb"] < 30


def test_the_base_lies_on_every_axis_and_values_rise():
    for axis, points in growth.AXES.items():
        assert growth.BASE in points, axis
        if axis != "model":
            values = [getattr(point, axis) for point in points]
            assert values == sorted(values), axis


def test_the_table_tells_growth_and_both_ends():
    prompt, model = growth.table(RESULTS).splitlines()[2:]
    assert prompt.startswith("| prompt tokens: 16, 256 | x^2.00 | x^1.00 | x^2.00 | x^1.00 |")
    assert prompt.endswith("| 2.0 ×, 50 % | 3.0 ×, 33 % |")
    assert model.startswith("| parameters: 1M, 4M | x^1.50 | x^0.50 | x^1.50 | x^0.50 |")
    assert model.endswith("| 1.0 ×, 100 % | 4.0 ×, 25 % |")


def test_the_same_results_are_drawn_as_the_same_picture(tmp_path):
    one, again, other = (tmp_path / f"{name}.svg" for name in ("one", "again", "other"))
    growth.draw(RESULTS, one)
    growth.draw(RESULTS, again)
    growth.draw({"axes": {"prompt": RESULTS["axes"]["prompt"]}}, other)
    drawn = one.read_text()
    for text in ("TRL 1.16", "Counterpoint", "prompt tokens", "parameters", "seconds a step"):
        assert f"<!-- {text} -->" in drawn, text
    assert drawn == again.read_text()
    assert drawn != other.read_text()
