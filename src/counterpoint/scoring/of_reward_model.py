"""A reward model as a scorer: a sequence classification model reads prompt and text.

1. Prompt and text go through the model's own chat template, the text as the assistant's turn.
   Without a template the text follows the prompt as it is.
2. Candidates are sorted by length and padded under a mask, so that a batch changes a score by
   rounding alone. A model without a pad token reads one at a time: it takes its score from the
   last token, and could not know which one that is.
3. What is longer than the model's positions has no score and is counted. Nothing is cut.

Not here: what becomes of the number (``total``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.console.bars import without_bars
from counterpoint.data.chat import apply_template
from counterpoint.errors import ModelError
from counterpoint.models.described import read_described, refuse_code, refuse_unbounded, weights_of
from counterpoint.models.family import Family
from counterpoint.models.folders import check_model_folder, folder_named
from counterpoint.models.loading import load_model, load_tokenizer
from counterpoint.models.weights import WeightsPolicy, init_keywords
from counterpoint.monitor.checksum import digest_of_weights
from counterpoint.preference_row import PreferenceRow
from counterpoint.scoring.entries import CandidateEntry
from counterpoint.scoring.scorer import Scorer
from counterpoint.scoring.scorer_options import RewardOptions

CLASSIFIER = Family(
    "sequence classification", lambda config: True, auto_class=AutoModelForSequenceClassification
)


class RewardModel(Scorer):
    """A model that is loaded once and asked in batches.

    Args:
        source: hub id or folder.
        options: how it is loaded and asked.

    Raises:
        ModelError: CP301, CP310, CP311 and CP315 for what cannot be loaded; CP346 for a model whose
            labels give no one number.
    """

    def __init__(self, source: str, options: RewardOptions) -> None:
        self._source, self._options = source, options
        keywords = {} if options.revision is None else {"revision": options.revision}
        args = CPOConfig(
            model_init_kwargs=keywords, trust_remote_code=options.trust_remote_code, use_cpu=True
        )
        _check(source, args)
        with without_bars():
            model = load_model(source, args, WeightsPolicy(options.dtype), family=CLASSIFIER)
        self._tokenizer = load_tokenizer(source, args)
        self._label = _label(model.config, source, options.label)
        self._batch = options.batch if _pads(model, self._tokenizer) else 1
        self._device = torch.device(options.device) if options.device else _accelerator()
        self._model = model.to(self._device).eval()
        self._positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._weights = digest_of_weights(model)
        self._too_long = 0

    def facts(self) -> Mapping[str, Any]:
        """Its weights, so that no others continue a file."""
        return {"weights": self._weights}

    def score(self, entries: Sequence[CandidateEntry]) -> list[float | None]:
        """The model's number for each; None for what is longer than its positions."""
        ids = [self._ids(entry) for entry in entries]
        found: list[float | None] = [None] * len(ids)
        for places in self._batches(ids):
            for place, number in zip(places, self._numbers([ids[p] for p in places]), strict=True):
                found[place] = number
        return found

    def remarks(self) -> list[str]:
        """How many were too long."""
        if not self._too_long:
            return []
        return [
            f"{self._too_long:,} candidates are longer than the {self._positions:,} positions of "
            f"{self._source}"
        ]

    def _ids(self, entry: CandidateEntry) -> list[int]:
        template = self._options.template
        chat = bool(self._tokenizer.chat_template) if template is None else template
        chat = chat or not isinstance(entry.prompt, str)
        if not chat:
            return list(self._tokenizer(f"{entry.prompt}{entry.text}")["input_ids"])
        asked = entry.prompt
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        turns = [*turns, {"role": "assistant", "content": entry.text}]
        row = PreferenceRow(turns, "", "", entry.number)
        text = apply_template(row, turns, self._tokenizer)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Places of candidates of like length; none of what is too long or has no token."""
        longest = self._positions or max(map(len, ids))
        fits = [place for place, one in enumerate(ids) if 0 < len(one) <= longest]
        self._too_long += sum(len(one) > longest for one in ids)
        fits.sort(key=lambda place: (len(ids[place]), place))
        for first in range(0, len(fits), self._batch):
            yield fits[first : first + self._batch]

    def _numbers(self, ids: Sequence[Sequence[int]]) -> list[float]:
        longest = max(map(len, ids))
        pad = self._model.config.pad_token_id or 0
        rows = [[*one, *[pad] * (longest - len(one))] for one in ids]
        seen = [[1] * len(one) + [0] * (longest - len(one)) for one in ids]
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(seen, device=self._device),
            ).logits.float()
        if self._label is None:
            return [float(one) for one in logits[:, 0]]
        return [float(one) for one in logits.softmax(-1)[:, self._label]]


def _check(source: str, args: CPOConfig) -> None:
    """What is said of the model's files before any weight is read."""
    folder = folder_named(source, "reward model")
    if folder:
        check_model_folder(folder, from_scratch=False, allow_pickle=False)
    described = read_described(source, folder, str(init_keywords(args).get("revision", "main")))
    refuse_unbounded(described, source, weights_of(folder) if folder else None)
    refuse_code(described, source, trusted=args.trust_remote_code)


def _label(config: Any, source: str, named: str | None) -> int | None:
    """Which label's probability is the score; None where the one logit is.

    Raises:
        ModelError: CP346.
    """
    labels = {str(name): int(place) for place, name in config.id2label.items()}
    if config.num_labels == 1 and named is None:
        return None
    if named in labels and config.num_labels > 1:
        return labels[str(named)]
    raise ModelError(
        "CP346",
        f"{source} has {config.num_labels} labels ({', '.join(list(labels)[:5])}), and label is "
        f"{named!r}. A reward model has one; of several, name in a file of scorers the one whose "
        "probability is the score.",
    )


def _pads(model: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether rows of unlike length can be read together."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.config.pad_token_id is not None


def _accelerator() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
