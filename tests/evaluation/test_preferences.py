"""Statistics over pairs whose answer can be counted by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.evaluation.bootstrap import Bootstrap, Resampling, mean, share_of_prompts
from counterpoint.evaluation.preferences import (
    accuracy_interval,
    compare,
    joined_outcomes,
    judge,
    outcomes_of,
)
from counterpoint.evaluation.scores import PairScores
from counterpoint.evaluation.table import comparison_table, preference_table

PLAN = Resampling(resamples=200)


def scores(chosen, rejected, *, tokens=None, logps=None, rows=None) -> PairScores:
    """Pairs with these rewards; log-probabilities and tokens as given, else alike."""
    count = len(chosen)
    chosen_tokens, rejected_tokens = tokens or ([4] * count, [4] * count)
    chosen_logps, rejected_logps = logps or ([-8.0] * count, [-8.0] * count)
    numbers = np.arange(count) if rows is None else np.asarray(rows)
    return PairScores(
        numbers,
        numbers,
        *(np.asarray(x, dtype=np.float64) for x in (chosen, rejected)),
        *(np.asarray(x, dtype=np.float64) for x in (chosen_logps, rejected_logps)),
        *(np.asarray(x, dtype=np.int64) for x in (chosen_tokens, rejected_tokens)),
    )


def random_scores(count: int = 200, seed: int = 0) -> PairScores:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, (2, count))
    return scores(
        rng.normal(0.3, 1, count), rng.normal(0, 1, count), tokens=tuple(lengths),
        logps=tuple(-lengths * rng.uniform(0.5, 2, (2, count))),
    )  # fmt: skip


def test_wins_count_one_ties_half_and_losses_nothing():
    found = judge(scores([2, 2, 2, 2, 2, 2, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), PLAN)
    assert found.measures["accuracy"].value == pytest.approx((6 + 2 * 0.5) / 10)
    assert (found.pairs, found.prompts, found.ties) == (10, 10, 2)


def test_the_log_of_a_run_counts_a_tie_as_lost_as_trl_does():
    assert (
        accuracy_interval(outcomes_of(np.arange(4), np.array([True, False, False, False]))).value
        == 0.25
    )


def test_outcomes_count_the_prompts_that_came_out_alike():
    # prompts 7 and 9 won one pair of two, prompt 3 both of its two, prompt 5 its one
    prompts = np.array([7, 3, 9, 5, 7, 3, 9])
    won = np.array([1, 1, 0, 1, 0, 1, 1], dtype=bool)
    assert outcomes_of(prompts, won).tolist() == [[1, 1, 1], [1, 2, 2], [2, 2, 1]]


@given(
    st.lists(st.tuples(st.integers(-4, 12), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 4),
)
def test_the_outcomes_of_ranks_that_share_the_prompts_are_those_of_one(pairs, ranks):
    prompts, won = np.array([p for p, _ in pairs]), np.array([w for _, w in pairs])
    shares = [prompts % ranks == rank for rank in range(ranks)]
    parts = [outcomes_of(prompts[mine], won[mine]) for mine in shares]
    whole = outcomes_of(prompts, won)
    assert np.array_equal(joined_outcomes(parts), whole)
    assert accuracy_interval(joined_outcomes(parts)) == accuracy_interval(whole)


def test_the_interval_of_outcomes_is_that_of_drawing_each_prompt():
    rng = np.random.default_rng(0)
    prompts, plan = rng.integers(0, 300, 1000), Resampling(resamples=20_000)
    won = rng.random(1000) < 0.4 + 0.3 * (prompts % 2)
    slow = Bootstrap(prompts, plan).estimates({"won": mean(won, is_share=True)})["won"]
    fast = share_of_prompts(outcomes_of(prompts, won), plan)
    width = slow.high - slow.low
    assert fast.value == slow.value
    # an end of 20,000 draws has a standard error of 0.5 % of the width; of two, 0.7 %
    assert fast.low == pytest.approx(slow.low, abs=0.03 * width)
    assert fast.high == pytest.approx(slow.high, abs=0.03 * width)


@pytest.mark.parametrize("won", [False, True])
def test_outcomes_that_are_all_alike_have_the_exact_end(won):
    prompts = np.arange(40) // 2
    wins = np.full(40, won)
    slow = Bootstrap(prompts, PLAN).estimates({"won": mean(wins, is_share=True)})["won"]
    assert share_of_prompts(outcomes_of(prompts, wins), PLAN) == slow


def test_a_model_that_knows_nothing_has_a_half():
    assert judge(scores([1.0] * 8, [1.0] * 8), PLAN).measures["accuracy"].value == 0.5


def test_a_reward_that_is_no_number_wins_nothing():
    found = judge(scores([math.nan, 1.0], [0.0, 0.0]), PLAN)
    assert found.measures["accuracy"].value == 0.5
    assert found.ties == 0


def test_sums_favour_the_short_and_means_do_not():
    long_and_likely = scores(
        [0, 0], [0, 0], tokens=([10, 10], [2, 2]), logps=([-10, -10], [-4, -4])
    )
    found = judge(long_and_likely, PLAN).measures
    assert found["accuracy_sum_logps"].value == 0
    assert found["accuracy_mean_logps"].value == 1
    assert found["longer_wins"].value == 1


def test_likelihoods_are_means_over_tokens():
    found = judge(scores([0, 0], [0, 0], tokens=([1, 9], [2, 2]), logps=([-3, -9], [-4, -2])), PLAN)
    values = {name: estimate.value for name, estimate in found.measures.items()}
    assert values["chosen_logps_per_token"] == pytest.approx(-12 / 10)
    assert values["rejected_logps_per_token"] == pytest.approx(-6 / 4)
    assert values["chosen_nll_per_token"] == pytest.approx(1.2)
    assert values["chosen_perplexity"] == pytest.approx(math.exp(1.2))


def test_quantiles_are_those_of_the_margins():
    found = judge(scores(np.arange(101), np.zeros(101)), PLAN)
    assert found.margin_quantiles == {0.05: 5, 0.25: 25, 0.5: 50, 0.75: 75, 0.95: 95}
    assert found.measures["margin"].value == 50


def test_bins_by_length_share_the_pairs_out():
    found = judge(random_scores(), PLAN)
    assert sum(one.pairs for one in found.by_length) == found.pairs
    whole = sum(one.pairs * one.accuracy.value for one in found.by_length) / found.pairs
    assert whole == pytest.approx(found.measures["accuracy"].value)
    rule = sum(one.pairs * one.longer_wins for one in found.by_length) / found.pairs
    assert rule == pytest.approx(found.measures["longer_wins"].value)


def test_a_reward_of_length_alone_is_right_where_chosen_is_longer_and_nowhere_else():
    some = random_scores()
    by_length = replace(
        some,
        chosen_rewards=some.chosen_tokens.astype(float),
        rejected_rewards=some.rejected_tokens.astype(float),
    )
    for one in judge(by_length, PLAN).by_length:
        assert one.accuracy.value == one.longer_wins
        if one.high is not None and one.high < 0:
            assert one.accuracy.value == 0
        if one.low is not None and one.low > 0:
            assert one.accuracy.value == 1


def test_models_are_compared_on_the_rows_that_both_have():
    before = scores([0, 1, 0, 0], [1, 0, 1, 1], rows=[0, 1, 2, 3])
    after = scores([1, 1, 0], [0, 0, 1], rows=[1, 2, 5])
    found = compare(before, after, PLAN)
    assert found.pairs == 2
    assert (found.before["accuracy"], found.after["accuracy"]) == (0.5, 1.0)
    assert found.differences["accuracy"].value == 0.5


def test_a_model_does_not_differ_from_itself():
    some = random_scores()
    for estimate in compare(some, some, PLAN).differences.values():
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_the_order_of_the_rows_changes_no_estimate():
    some = random_scores(50)
    turned = some.at(np.arange(50)[::-1])
    one, other = judge(some, PLAN), judge(turned, PLAN)
    for name, estimate in one.measures.items():
        assert other.measures[name].value == pytest.approx(estimate.value, rel=1e-12)
        assert other.measures[name].low == pytest.approx(estimate.low, rel=1e-9, abs=1e-12)


def test_tables_fit_eighty_columns_and_json_holds_them():
    before, after = random_scores(), random_scores(seed=1)
    lines = preference_table("held-out.jsonl", judge(after, PLAN), 0.6931, 0.95)
    lines += comparison_table("held-out.jsonl", compare(before, after, PLAN), 0.95)
    assert max(map(len, lines)) <= 80
    back = json.loads(json.dumps(judge(after, PLAN).as_dict()))
    assert back["measures"]["accuracy"]["value"] == judge(after, PLAN).measures["accuracy"].value
    assert set(back["margin_quantiles"]) == {"0.05", "0.25", "0.5", "0.75", "0.95"}
