"""A model is in evaluation mode for a while, and each of its modules as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from counterpoint.forward.modes import in_evaluation_mode


def some_frozen() -> nn.Sequential:
    """A model that trains, with one module that was set to evaluate."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)))
    model[1][0].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_module_evaluates_and_then_is_in_its_own_mode_again() -> None:
    model = some_frozen()
    with in_evaluation_mode(model):
        assert modes(model) == [False] * 5
        ones = torch.ones(3, 2)
        torch.testing.assert_close(model[0](ones), ones)
    assert modes(model) == [True, True, True, False, True]


def test_a_model_that_evaluates_already_still_does() -> None:
    model = some_frozen().eval()
    with in_evaluation_mode(model):
        pass
    assert modes(model) == [False] * 5


def test_modes_are_put_back_after_an_error() -> None:
    model = some_frozen()
    with pytest.raises(ZeroDivisionError), in_evaluation_mode(model):
        raise ZeroDivisionError
    assert modes(model) == [True, True, True, False, True]
