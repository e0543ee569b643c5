"""A model that a function makes, as ``model_init`` of transformers does.

Its kind must be known before its rows can be encoded, and it is known once the function was called.
So the first model is made early, and is the one that the first call gives; transformers makes
another for its training, under the run's seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class MadeLater:
    """A ``model_init``, called once.

    Args:
        model_init: makes a model, with a trial of a search for options, or without arguments.
    """

    def __init__(self, model_init: Callable[..., Any]) -> None:
        self._make = model_init
        self._of_trial = bool(inspect.signature(model_init).parameters)
        self.first = self._made(None)
        self._given = False

    def _made(self, trial: Any) -> Any:
        return self._make(trial) if self._of_trial else self._make()

    def ready(self, prepare: Callable[[Any], Any]) -> Callable[..., Any]:
        """A ``model_init`` of as many arguments, whose models are prepared.

        Args:
            prepare: a model -> the one to train.
        """

        def made(trial: Any = None) -> Any:
            model = self._made(trial) if self._given else self.first
            self._given, self.first = True, None  # not kept beside the run's own
            return prepare(model)

        # transformers counts the arguments to see whether a trial is wanted
        return (lambda trial: made(trial)) if self._of_trial else (lambda: made())
