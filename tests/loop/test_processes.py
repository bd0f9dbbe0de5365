"""Several processes, started for real, share out what the loop does and end with what one gets."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import tiny
import torch
from monai.losses import DiceLoss

from sea_peft.data.codes import IGNORED
from sea_peft.data.crops import CropSampler
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DeviceError, LostProcessError, SeaPeftError
from sea_peft.loop.audit import Auditor
from sea_peft.loop.controller import Controller
from sea_peft.loop.policies import make_policy
from sea_peft.loop.processes import ALONE, Processes, joined
from sea_peft.loop.settings import LoopSettings, Shots
from sea_peft.loop.training import Trainer, loss_from, loss_sums

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
WINDOW = SlidingWindow(patch=(16, 16, 16))
Work = Callable[[Processes], Any]


def _child(work: Work, rank: int, size: int, port: int, told: Connection) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    torch.set_num_threads(1)
    try:
        with joined(rank) as processes:
            answer = work(processes)
    except SeaPeftError as error:
        answer = error
    told.send_bytes(
        pickle.dumps(answer)
    )  # tensors and all: `send` would leave them in this process


def _in(size: int, work: Work) -> list[Any]:
    """What `work` returns in each of `size` processes, or the error that ended it; None where a
    process was killed.
    """
    context = multiprocessing.get_context(
        "fork"
    )  # to import torch and MONAI again takes longer than all of the work
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(work, rank, size, port, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    said: list[Any] = []
    for process, ours in started:
        said.append(None)
        with contextlib.suppress(EOFError):
            said[-1] = pickle.loads(ours.recv_bytes())
        process.join()
    return said


# -- alone -----------------------------------------------------------------------------------------


def test_one_process_has_all_and_sends_nothing():
    tensor = torch.ones(3, requires_grad=True)
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.together((1, 2)) == [1, 2]
    assert ALONE.of_first(lambda: 5) == 5
    assert ALONE.pooled(tensor) is tensor
    ALONE.add_up([tensor])
    ALONE.add_gradients([torch.nn.Parameter(tensor)])
    ALONE.require_equal(lambda: "")
    assert torch.equal(tensor, torch.ones(3))


@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_from_its_sums_is_monais_dice_and_torchs_cross_entropy_bit_for_bit(
    ignored: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 4, 9, 8, 7, generator=generator)
    labels = torch.randint(0, 4, (2, 9, 8, 7), generator=generator, dtype=torch.uint8)
    if ignored:
        labels[:, :4] = IGNORED
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    loss = loss_from(loss_sums(ours, labels))
    inside = (labels != IGNORED)[:, None]
    reference = torch.nn.functional.one_hot(labels.where(inside[:, 0], 0).long(), 4).movedim(-1, 1)
    expected = DiceLoss(include_background=False, batch=True)(
        theirs.softmax(dim=1) * inside, reference * inside
    )
    expected = expected + torch.nn.functional.cross_entropy(
        theirs, labels.long(), ignore_index=IGNORED
    )
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(ours.grad, theirs.grad)


# -- together --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Found:
    share: list[int]
    together: list[int]
    of_first: int
    losses: list[float]
    head_losses: list[float]
    gradients: dict[str, torch.Tensor]
    saliency: dict[str, float]
    rows: tuple[object, ...]
    stopped_early: tuple[object, ...]
    dice: tuple[float, ...]


def _everything(processes: Processes) -> _Found:
    """Each thing that is shared out, on a model that is the same everywhere."""
    mine = processes.share(range(5))
    adapted = tiny.model()
    units = tiny.one_per_group(adapted)
    tiny.train(adapted, units[:7])
    crops, losses = CropSampler([tiny.scan(1), tiny.scan(2)], WINDOW, seed=0), list[float]()
    adapted.bank.activate(units[:7])
    saliency = Trainer(adapted, 2, processes=processes).saliency(units[7:10], crops, 0, 3)
    images, labels = CropSampler([tiny.scan(1), tiny.scan(2)], WINDOW, seed=3).fixed(5)
    auditor = Auditor(adapted.eval(), images, labels, batch=2, processes=processes)
    result = auditor.audit(dict.fromkeys(units[:7], 0.0))
    stopped = auditor.audit(dict.fromkeys(units[:7], 0.0), error=0.3)
    dice = auditor.dice_of(units[:4])
    # after one step Adam's first moment is a tenth of the gradient
    trainer = Trainer(adapted, 2, processes=processes)
    trainer.train(units[:7], crops, 0, 1, lambda i: 1.0, lambda step, loss: losses.append(loss))
    alone, head_losses = tiny.model(), list[float]()
    head = Trainer(alone, 2, head_alone=True, processes=processes)
    head.train((), crops, 0, 3, lambda i: 1.0, lambda step, loss: head_losses.append(loss))
    return _Found(
        share=list(mine),
        together=processes.together([n * n for n in mine]),
        of_first=processes.of_first(lambda: 10 + processes.rank),
        losses=losses,
        head_losses=head_losses,
        gradients={key: state["exp_avg"] for key, state in trainer.state_dict().items()},
        saliency=saliency,
        rows=result.rows,
        stopped_early=stopped.rows,
        dice=dice,
    )


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_shared_out_is_what_one_process_finds(size: int) -> None:
    """With three, one process has no crop of a step and none of a saliency's last batches."""
    alone = _everything(ALONE)
    found: list[_Found] = _in(size, _everything)
    assert [one.share for one in found] == [list(range(5))[rank::size] for rank in range(size)]
    assert len({row.patches for row in alone.stopped_early}) > 1, (
        "some units are decided early, and some are not"
    )
    for one in found:
        assert one.together == [0, 1, 4, 9, 16]
        assert one.of_first == 10
        # ablations are whole pieces of work, so that not a bit of them differs
        assert (one.rows, one.stopped_early, one.dice) == (
            alone.rows,
            alone.stopped_early,
            alone.dice,
        )
        assert one.losses == pytest.approx(alone.losses, rel=1e-5)
        assert one.head_losses == pytest.approx(alone.head_losses, rel=1e-5)
        assert one.saliency == pytest.approx(alone.saliency, rel=1e-4)
        assert one.gradients.keys() == alone.gradients.keys()
        for key, gradient in one.gradients.items():
            scale = float(alone.gradients[key].abs().max())
            torch.testing.assert_close(gradient, alone.gradients[key], rtol=0, atol=1e-4 * scale)
            assert torch.equal(gradient, found[0].gradients[key]), (
                "all processes take the very same step"
            )


def _search(processes: Processes) -> list[object]:
    """A whole search; what was decided in it."""
    adapted, said = tiny.model(), list[Any]()
    space = tiny.space_of(adapted)
    settings = LoopSettings(steps=24, cycles=2, window=WINDOW)
    shots = Shots.of((tiny.scan(1), tiny.scan(2)), (tiny.scan(3),))
    policy = make_policy("sea", space, seed=0, cycles=2)
    Controller(adapted, space, policy, shots, settings, 0, said.append, processes=processes).run()
    return [(e.active, e.probes) for e in said if e.kind == "allocated"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_a_search_decides_what_one_process_decides(size: int) -> None:
    assert _in(size, _search) == [_search(ALONE)] * size


# -- trouble ---------------------------------------------------------------------------------------


def _one_differs(processes: Processes) -> None:
    processes.require_equal(lambda: "all the same")
    processes.require_equal(lambda: f"{processes.rank == 1}")


def _one_is_killed(processes: Processes) -> None:
    processes.add_up([torch.ones(2)])
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.add_up([torch.ones(2)])


def test_processes_that_part_stop_with_a_sentence() -> None:
    for error in _in(2, _one_differs):
        assert isinstance(error, DeviceError)
        assert "no longer hold the same adapters" in str(error)


def test_the_others_notice_at_once_that_one_is_gone() -> None:
    left, killed = _in(2, _one_is_killed)
    assert isinstance(left, LostProcessError)
    assert killed is None
