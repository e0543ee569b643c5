"""What ``counterpoint chat`` takes beside the options of ``train`` that load a model.

Not here: the chat (``cli.chat``).
"""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.errors import ConfigError
from counterpoint.options.declared import option
from counterpoint.options.limits import refuse_below, refuse_drawing, refuse_other_than_lines


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The command's own flags; every field's help is its meaning."""

    base: str | None = option(
        None, "Another model that answers too, as MODEL: you say which answer is better."
    )
    blind: bool = option(
        False, "With base: mix the two, and say which is which only once you have chosen."
    )
    out: str | None = option(
        None,
        "File of pairs to write, .jsonl: a line each time you prefer an answer. Beside it, "
        "NAME.said.jsonl gets every answer. Files of earlier chats are added to.",
    )
    system_prompt: str | None = option(None, "System turn that each conversation begins with.")
    temperature: float = option(1.0, "Above 0; 0: the likeliest token after token.")
    top_p: float = option(1.0, "Share of probability to sample from, in (0, 1].")
    top_k: int = option(0, "Most tokens to sample from, >= 1; 0: all.")
    max_new_tokens: int = option(512, "Most tokens of an answer, >= 1.")
    stop: list[str] = option(
        [],
        "Tokens that end an answer, as the vocabulary spells them, beside those that model, "
        "tokenizer and chat template name.",
    )
    seed: int = option(0, "Of the draws and of the mixing, >= 0: the same one gives the same chat.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_below(self, top_k=0, max_new_tokens=1, seed=0)
        refuse_drawing(self.temperature, self.top_p)
        given = {"top_p": self.top_p != 1, "top_k": self.top_k != 0}
        idle = [name for name, is_given in given.items() if is_given]
        if idle and not self.temperature:
            raise ConfigError(
                "CP104",
                f"{' and '.join(idle)} would do nothing: temperature=0 takes the likeliest token "
                "after token. Leave them out, or set a temperature above 0.",
            )
        if self.blind and self.base is None:
            raise ConfigError("CP104", "blind would do nothing: it mixes two models. Name --base.")
        refuse_other_than_lines(self.out)
