"""A rank computes where the job says, or says why not."""

import pytest
import torch

from lmtraining_api import FailureClass
from lmtraining_trainer import device
from lmtraining_trainer.errors import TrainerError

pytestmark = pytest.mark.trainer


def test_a_job_for_the_cpu_leaves_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delattr(torch.cuda, "set_device")
    assert device.device_of(0, accelerated=False) == torch.device("cpu")


@pytest.mark.parametrize("count", [0, 2])
def test_a_rank_without_a_device_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(TrainerError) as raised:
        device.device_of(2, accelerated=True)
    assert raised.value.failure_class is FailureClass.HARDWARE
    assert "local number 2" in raised.value.message
    assert f"sees {count} here" in raised.value.message


def test_each_rank_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device.device_of(3, accelerated=True) == torch.device("cuda", 3)
    assert chosen == [torch.device("cuda", 3)]
