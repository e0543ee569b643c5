"""A reward model scores through its chat template, whatever stands beside a candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from counterpoint.errors import ModelError
from counterpoint.scoring.entries import CandidateEntry, read_entries
from counterpoint.scoring.of_reward_model import RewardModel
from counterpoint.scoring.scorer_options import RewardOptions
from tests.models_on_the_spot import make_model

LONGEST = 64


@pytest.fixture(scope="module")
def reward(
    tmp_path_factory: pytest.TempPathFactory, chatml_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A model of one label, with a chat template."""
    return _saved(tmp_path_factory.mktemp("reward"), chatml_tokenizer, num_labels=1)


def _saved(folder: Path, tokenizer: PreTrainedTokenizerFast, **config: Any) -> Path:
    made = make_model("qwen2", vocab_size=len(tokenizer)).config
    made.update({"max_position_embeddings": LONGEST, **config})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(made)
    with torch.no_grad():
        model.score.weight.normal_(0, 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def entries(tmp_path: Path) -> list[CandidateEntry]:
    """Candidates of unlike length, one of them longer than the model's positions."""
    texts = ["Yes.", "No, I would rather not say that.", "It is four.", "word " * LONGEST, "Yes."]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f"{json.dumps({'prompt': 'Well?', 'text': one})}\n" for one in texts))
    found = read_entries([path])
    return list(found.read(0, len(found)))


def test_neither_batch_nor_order_changes_a_score_but_by_rounding(
    reward: Path, entries: list[CandidateEntry]
) -> None:
    alone = RewardModel(str(reward), RewardOptions(batch=1, device="cpu"))
    one_by_one = [alone.score([entry])[0] for entry in entries]
    together = RewardModel(str(reward), RewardOptions(batch=4, device="cpu"))
    assert one_by_one[3] is None
    assert "1 candidates are longer than the 64 positions" in alone.remarks()[0]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        found = together.score([entries[n] for n in order])
        for n, number in zip(order, found, strict=True):
            if n == 3:
                assert number is None
            else:
                # float32 through two layers: some 1e-7 of a score of order 1
                assert number == pytest.approx(one_by_one[n], abs=1e-5)
    assert one_by_one[0] == one_by_one[4] != one_by_one[1]


def test_prompt_and_text_go_through_the_template(
    reward: Path, entries: list[CandidateEntry]
) -> None:
    scorer = RewardModel(str(reward), RewardOptions(device="cpu"))
    tokenizer, model = scorer._tokenizer, scorer._model
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}],
        tokenize=False,
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        wanted = float(model(ids).logits[0, 0])
    assert scorer.score(entries[:1]) == [pytest.approx(wanted, abs=1e-6)]
    plain = RewardModel(str(reward), RewardOptions(device="cpu", template=False))
    assert plain.score(entries[:1]) != [pytest.approx(wanted, abs=1e-3)]


def test_of_several_labels_one_is_named(
    tmp_path: Path, chatml_tokenizer: PreTrainedTokenizerFast, entries: list[CandidateEntry]
) -> None:
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    folder = str(_saved(tmp_path / "two", chatml_tokenizer, num_labels=2, **labels))
    with pytest.raises(ModelError, match=r"CP346 .* has 2 labels \(bad, good\), and label is None"):
        RewardModel(folder, RewardOptions())
    good, bad = (RewardModel(folder, RewardOptions(label=one)) for one in ("good", "bad"))
    for up, down in zip(good.score(entries[:3]), bad.score(entries[:3]), strict=True):
        assert up + down == pytest.approx(1, abs=1e-6)


def test_a_model_of_another_task_is_refused_and_weights_are_known_again(
    tmp_path: Path, reward: Path, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    causal = make_model("qwen2", vocab_size=len(chatml_tokenizer))
    causal.save_pretrained(tmp_path / "causal")
    chatml_tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(ModelError, match=r"CP301 .*lacks 1 of its weights \(score.weight\)"):
        RewardModel(str(tmp_path / "causal"), RewardOptions())
    facts = RewardModel(str(reward), RewardOptions()).facts()
    assert facts == RewardModel(str(reward), RewardOptions(batch=2)).facts()
    assert len(facts["weights"]) == 32
