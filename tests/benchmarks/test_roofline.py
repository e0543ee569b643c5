"""Useful work is counted as the formula says, and as torch counts it."""

from __future__ import annotations

import pytest
import roofline
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models_on_the_spot import make_model

TINY = {
    "hidden_size": 4,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 10,
    "tie_word_embeddings": True,
}


def test_useful_work_of_a_pair_counted_by_hand():
    # 3 + 2 + 1 tokens, 3 targets; the queries see 1+2+3, 4+5 and 4 keys
    layers, head, attention = 6 * 100 * 6, 6 * 4 * 10 * 3, 12 * 3 * 4 * 19
    assert roofline.useful_flops(TINY, 140, [(3, 2, 1)]) == layers + head + attention
    untied = {**TINY, "tie_word_embeddings": False}
    assert roofline.useful_flops(untied, 180, [(3, 2, 1)]) == layers + head + attention


def test_the_work_of_several_pairs_is_the_sum_of_theirs():
    pairs = [(3, 2, 1), (9, 4, 7)]
    one_by_one = sum(roofline.useful_flops(TINY, 140, [pair]) for pair in pairs)
    assert roofline.useful_flops(TINY, 140, pairs) == one_by_one


def test_torch_counts_the_same_products_where_nothing_is_shared_or_masked():
    model = make_model("qwen2_tied")
    model.set_attn_implementation("eager")  # whose products torch's counter knows
    tokens = 12
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.arange(3, 3 + tokens)[None], use_cache=False).logits
        logits.sum().backward()
    config = model.config.to_dict()
    weights = model.num_parameters() - sum(
        p.numel() for name, p in model.named_parameters() if p.dim() < 2
    )
    # one completion of all tokens and no prompt: every token a target, attention causal
    found = roofline.useful_flops(config, weights, [(0, tokens, 0)])
    heads = config["num_attention_heads"] * config.get("head_dim", 8)
    unmasked = 12 * config["num_hidden_layers"] * heads * tokens * (tokens - 1) / 2
    assert counter.get_total_flops() == pytest.approx(found + unmasked, rel=1e-3)


def test_a_row_tells_medians_and_the_best_rate():
    runs = {
        "fp32": [{"parameters": 7, "seconds": [4.0, 6.0]}],
        "bf16": [
            {
                "parameters": 7,
                "seconds": [2.0, 2.5],
                "optimizer": [0.4, 0.5],
                "flops": [8.0, 5.0],
                "matrix_rate": 10.0,
            }
        ],
    }
    row = roofline.summary("110m", runs)
    assert row["speed_ratio"] == pytest.approx(5 / 2.25)
    assert row["share"] == pytest.approx({"median": 0.3, "min": 0.2, "max": 0.4})
    assert row["share_without_optimizer"] == pytest.approx((0.5 + 0.25) / 2)
    assert "30 % (20 to 40; goal 35 %: **missed**)" in roofline.table([row])
