"""What the doctor says of what a loss compares with."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from tests.doctor.patients import Patient, healthy
from tests.models_on_the_spot import make_model


def of_dpo(tmp_path: Path, **options: Any) -> Patient:
    patient = healthy(str(tmp_path / "out"))
    return replace(patient, options={**patient.options, "loss_type": "dpo", **options})


def codes(patient: Patient) -> dict[str, str]:
    """What was found of references, and what was seen."""
    found = {finding.code: finding.seen for finding in patient.examined().findings}
    return {code: seen for code, seen in found.items() if code[2:] in ("240", "338", "301")}


def test_a_run_that_compares_with_its_initial_policy_is_healthy(tmp_path: Path) -> None:
    report = of_dpo(tmp_path).examined()
    assert [finding.code for finding in report.findings if finding.severity != "note"] == []


def test_a_stream_cannot_be_compared(tmp_path: Path) -> None:
    patient = of_dpo(tmp_path, max_steps=4)
    rows = datasets.Dataset.from_list(list(patient.rows)).to_iterable_dataset()
    assert codes(replace(patient, rows=rows)) == {
        "CP240": "loss_type=dpo with a streamed data set."
    }
    plain = replace(patient, options={**patient.options, "loss_type": "sigmoid"}, rows=rows)
    assert codes(plain) == {}


def test_a_reference_is_the_model_itself_or_reads_otherwise_or_is_not_there(tmp_path: Path) -> None:
    own = of_dpo(tmp_path)
    folder = tmp_path / "own"
    model = copy.deepcopy(own.model)
    model.save_pretrained(folder)
    model.config._name_or_path = str(folder)
    patient = replace(of_dpo(tmp_path, reference=str(folder)), model=model)
    assert codes(patient) == {"CW240": f"reference={folder} is the model itself."}
    other = replace(patient, model=own.model)  # in memory, and so not known to be the same
    assert codes(other) == {}
    make_model("t5").save_pretrained(tmp_path / "translator")
    (found,) = codes(of_dpo(tmp_path, reference=str(tmp_path / "translator"))).items()
    assert found[0] == "CP338"
    assert "one of them has an encoder" in found[1]
    assert [*codes(of_dpo(tmp_path, reference=str(tmp_path / "nowhere")))] == ["CP301"]
