"""Cards that a wheel of torch has kernels for, and those that it has not; no GPU is needed."""

import pytest
import torch

from mm_fibinet.devices import runs_on
from mm_fibinet.errors import UserError
from mm_fibinet.items.encoders import resolve_device
from mm_fibinet.settings import require_device

FROM_TURING_ON = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # torch's wheels for CUDA 12.8


@pytest.mark.parametrize(
    ("built_for", "runs", "fails"),
    [
        (FROM_TURING_ON, [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 1), (13, 0)], [(6, 0), (7, 0), (3, 7), (11, 0)]),
        (["sm_80"], [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),  # machine code: this major version, from this minor on
        (["sm_86"], [(8, 6), (8, 9)], [(8, 0)]),
        (["sm_37", "compute_37"], [(3, 7), (5, 0), (9, 0), (12, 0)], [(3, 5)]),  # PTX: every newer card
        (["sm_90a"], [(9, 0)], [(8, 9), (10, 0)]),
        (["compute_90a"], [(9, 0)], [(9, 1), (10, 0)]),
        (["sm_100f"], [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        (["sm_70", "another form"], [(6, 0)], []),  # what is not understood is no reason to refuse
    ],
)
def test_which_cards_a_build_runs_on(built_for, runs, fails):
    assert [runs_on(built_for, *card) for card in runs] == [True] * len(runs)
    assert [runs_on(built_for, *card) for card in fails] == [False] * len(fails)


@pytest.fixture
def cards(monkeypatch):
    """Pretend that this machine has a T4 and a P100."""
    found = [("Tesla T4", (7, 5)), ("Tesla P100-PCIE-16GB", (6, 0))]
    for name, answer in {
        "is_available": lambda: True,
        "device_count": lambda: len(found),
        "get_device_name": lambda index: found[index][0],
        "get_device_capability": lambda index: found[index][1],
        "get_arch_list": lambda: FROM_TURING_ON,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.version, "hip", None)


def test_a_card_without_kernels_is_refused_by_name(cards):
    require_device(-1)
    require_device(0)
    found = r"Tesla P100-PCIE-16GB has compute capability 6\.0 \(sm_60\), but torch .* has kernels for sm_75, sm_80, .*"
    with pytest.raises(UserError, match=rf"--gpu 1: {found} or --gpu -1 for the CPU"):
        require_device(1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match=rf"--device cuda:1: {found} or --device cpu"):
        resolve_device("cuda:1")


def test_a_card_that_is_not_there_is_refused(cards):
    for gpu in (2, -2):
        with pytest.raises(UserError, match=rf"--gpu {gpu}: found 2 CUDA devices; use --gpu -1 for the CPU"):
            require_device(gpu)


def test_nothing_is_refused_where_torch_names_no_architectures(cards, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")  # ROCm's names are others
    require_device(1)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    require_device(1)
