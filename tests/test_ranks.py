"""Exchanges between ranks: their values on two processes, and that they do nothing with one."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from counterpoint import SetupError, ranks
from counterpoint.checkpoint import folder, manifest
from counterpoint.checkpoint.folder import staging
from counterpoint.checkpoint.resumption import find_checkpoint
from counterpoint.checkpoint.saving import save_checkpoint
from counterpoint.checkpoint.together import tidy_together
from counterpoint.tensor_parts import device_of_products, on_its_mesh
from tests.invariance.test_ranks import launch


def test_alone_every_exchange_gives_back_what_it_was_given() -> None:
    tensor = torch.tensor([1.5, -2.0])
    assert (ranks.rank(), ranks.count(), ranks.alone()) == (0, 1, True)
    assert all(one(tensor) is tensor for one in (ranks.add_up, ranks.least, ranks.most))
    assert tensor.tolist() == [1.5, -2.0]
    assert ranks.gathered("a") == ["a"]
    assert ranks.everywhere([3, 1]) == [3, 1]
    assert ranks.exchanged([tensor]) == [tensor]
    assert not ranks.raised_between_ranks(RuntimeError("gloo: connection closed by peer"))


def test_a_shard_that_waits_on_the_host_belongs_to_the_device_of_its_mesh(monkeypatch) -> None:
    model = torch.nn.Linear(2, 2)
    assert device_of_products(model) == torch.device("cpu")
    assert on_its_mesh(model.weight) is model.weight
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    model.weight.device_mesh = SimpleNamespace(device_type="meta")
    assert device_of_products(model) == torch.device("meta:1")
    assert on_its_mesh(model.weight).is_meta
    model.weight.device_mesh = SimpleNamespace(device_type="cpu")
    assert device_of_products(model) == torch.device("cpu")
    assert on_its_mesh(model.weight) is model.weight


@pytest.mark.slow
def test_two_ranks_find_the_same_values(tmp_path: Path) -> None:
    for code, output in launch("tests.test_ranks", [str(tmp_path)]):
        assert code == 0, output[-3000:]


def main(place: Path) -> None:
    """Be one of two ranks."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    ranks.leave_at_exit()
    own = ranks.rank()
    assert (ranks.count(), ranks.alone()) == (2, False)
    tensor = torch.tensor([1.0 + own, -own])
    assert ranks.add_up(tensor) is tensor
    assert tensor.tolist() == [3.0, -1.0]
    assert ranks.least(torch.tensor([own, -own])).tolist() == [0, -1]
    assert ranks.most(torch.tensor([own, -own])).tolist() == [1, 0]
    # as where a backend knows no host memory: a copy is exchanged, the tensor has the result
    here = mock.patch.object(ranks, "_accelerator", return_value=torch.device("cpu"))
    nccl = mock.patch.object(torch.distributed, "get_backend_config", return_value="cuda:nccl")
    tensor = torch.tensor([1.0 + own, -own])
    with here as asked, nccl:
        assert ranks.add_up(tensor) is tensor
        assert tensor.tolist() == [3.0, -1.0]
        assert ranks.from_the_first(torch.tensor([own])).tolist() == [0]
    assert asked.call_count == 2
    assert ranks.gathered({"rank": own}) == [{"rank": 0}, {"rank": 1}]
    assert ranks.everywhere([own] * (own + 1)) == [0, 1, 1]
    # rank 0 keeps one row and gives two away, rank 1 gives none away and keeps none
    given = [torch.tensor([[1, 2]]), torch.tensor([[3, 4], [5, 6]])]
    found = ranks.exchanged([part[: len(part) * (1 - own)] for part in given])
    assert [part.tolist() for part in found] == [given[own].tolist(), []]
    assert ranks.first_does(lambda: own + 7) == 7
    assert ranks.each_does(lambda: own) == own

    def fail_on_the_second() -> None:
        if own:
            raise SetupError("CP515", "no space")

    with pytest.raises(SetupError, match=r"^CP515 ") as raised:
        ranks.each_does(fail_on_the_second)
    noted = getattr(raised.value, "__notes__", [])
    assert noted == ([] if own else ["It was raised on rank 1."])
    _read_a_checkpoint_through(place / "checkpoint-1", own)


def _read_a_checkpoint_through(target: Path, own: int) -> None:
    """Each rank reads what it wrote, and half of what is verified; both name the same damage."""
    read: list[str] = []
    whole = manifest._read_through
    manifest._read_through = lambda path: read.append(path.name) or whole(path)

    def write(staged: Path) -> None:
        (staged / f"rank-{own}.json").write_text(f"{own}" * 9)
        if not own:
            (staged / "model.safetensors").write_text("whole")

    def publish(target: Path, files: dict[str, manifest.File]) -> None:
        manifest.seal(staging(target), step=1, resumable=True, fingerprint={}, files=files)
        folder.publish(target)

    save_checkpoint(target, write, publish, limit=1, keep=[])
    # in which order a disk lists them is its own matter
    assert sorted(read) == ([f"rank-{own}.json"] if own else ["model.safetensors", "rank-0.json"])
    read.clear()
    listed = find_checkpoint(target.parent, "latest")
    assert listed == (target, manifest.read_manifest(target))
    assert sorted(ranks.everywhere(read)) == ["model.safetensors", "rank-0.json", "rank-1.json"]
    if own:
        (target / "rank-1.json").write_text("2" * 9)
    torch.distributed.barrier()
    with pytest.raises(SetupError, match=r"^CP512 .* is damaged: rank-1\.json has changed\.$"):
        find_checkpoint(target.parent, target)
    torch.distributed.barrier()
    if own:
        target.rename(staging(target))  # as a run leaves it that is killed before it renames
    torch.distributed.barrier()
    tidy_together(target.parent)
    assert list(target.parent.iterdir()) == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
