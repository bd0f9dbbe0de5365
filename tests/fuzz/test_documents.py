"""JSON and TOML of a stranger, changed at random: the promised exit codes, one sentence, no
death, no hang, no memory, no command, nothing left.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from child import Child, Outcome
from mutations import as_bytes, damaged, mutated
from toys import SHORTEST, make_adapter, tiny_weights, toy_dataset

from sea_peft.jobs.adapt import adapt
from sea_peft.loop import events

COMMAND = Path(sys.executable).with_name("seapeft")
TRAP = (
    "import pathlib\npathlib.Path(__file__).with_name('PWNED').touch()\ndef factory(**_):\n   "
    " raise AssertionError\n"
)
PROFILE = """name = "mine"
about = "For one site"
budget = "20%"
head = "train"
[families.affine]
[families.lora]
levels = [1, 4]
kinds = ["conv"]
"""


@dataclasses.dataclass(frozen=True)
class World:
    """What the documents are changed in: sound weights, an adapter, a run that was broken off, one
    that is done, data. `trap`: a file that exists as soon as code that only a document names has
    run.
    """

    root: Path

    @property
    def trap(self) -> Path:
        return self.root / "modules" / "PWNED"

    def copy(self, name: str, to: str) -> Path:
        """A fresh copy of a file or folder."""
        target = self.root / "case" / to
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(exist_ok=True)
        source = self.root / name
        return Path(
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("fuzz")
    tiny_weights(root)
    toy = toy_dataset(root / "toy", cases=4)
    (root / "modules").mkdir()
    (root / "modules" / "trap.py").write_text(TRAP)
    listed = root / "listed"
    shutil.copytree(toy / "imagesTr", listed / "images")
    shutil.copytree(toy / "labelsTr", listed / "labels")
    entries = [
        {"id": f"t{n}", "image": f"images/toy_{n}_0000.nii.gz", "label": f"labels/toy_{n}.nii.gz"}
        for n in range(4)
    ]
    datalist = {
        "name": "toy",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "spot": 2},
        "training": entries,
    }
    (listed / "datalist.json").write_text(json.dumps(datalist))
    (root / "one").mkdir()
    shutil.copy(toy / "imagesTr" / "toy_0_0000.nii.gz", root / "one" / "toy_0.nii.gz")
    return World(root)


@pytest.fixture(scope="session")
def used_world(world: World) -> World:
    """With an adapter and runs in it, which takes longer to make than a few documents to change."""
    root, weights, toy = world.root, world.root / "tiny.safetensors", world.root / "toy"
    make_adapter(root / "adapter", weights, {"organ": [1], "spot": [2]}, ["CT"], ("affine", "lora"))
    options = dataclasses.replace(SHORTEST, data=str(toy), weights=str(weights), out=root / "done")

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Scored):
            raise KeyboardInterrupt

    adapt(options)
    with pytest.raises(KeyboardInterrupt):
        adapt(dataclasses.replace(options, out=root / "broken", policy="affine"), stop)
    return world


@pytest.fixture(scope="session")
def child(world: World) -> Iterator[Child]:
    environment = {
        "PYTHONPATH": str(world.root / "modules"),
        "XDG_DATA_HOME": str(world.root / "home"),
    }
    made = Child(world.root, **environment)
    yield made
    made.close()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of document. `of`: where a sound one stands; `line`: the verb that reads the
    changed one; `codes`: what it may end with.
    """

    of: str
    codes: frozenset[int]
    line: Callable[[World, bytes, random.Random], Sequence[object]]

    def change(self, world: World, rng: random.Random) -> bytes:
        """A changed document."""
        text = (world.root / self.of).read_text("utf-8")
        if self.of.endswith(".json"):
            return as_bytes(mutated(json.loads(text), rng), rng)
        lines = text.splitlines()  # of a trace
        if rng.randrange(6) == 0:
            return damaged(text.encode(), rng)
        at = rng.randrange(len(lines))
        made = [line.encode() for line in lines]
        made[at] = as_bytes(mutated(json.loads(lines[at]), rng), rng)
        if rng.randrange(8) == 0:
            made.insert(rng.randrange(len(made)), made[at])
        return b"\n".join(made) + b"\n"


class Profile(Kind):
    def change(self, world: World, rng: random.Random) -> bytes:
        odd = [
            "-1",
            "1e400",
            "[]",
            "nan",
            '"x"',
            "[[[1]]]",
            "2020-01-01",
            "true",
            "[" * 5000,
            "{a={b={c=1}}}",
            "999999999999999999999",
            '"\\u0000"',
        ]
        text = PROFILE
        for _ in range(rng.randrange(1, 4)):
            lines = text.splitlines()
            at = rng.randrange(len(lines))
            kind = rng.randrange(4)
            if kind == 0:
                del lines[at]
            elif kind == 1 and "=" in lines[at]:
                lines[at] = f"{lines[at].partition('=')[0]}= {rng.choice(odd)}"
            elif kind == 2:
                lines.insert(
                    at,
                    rng.choice(
                        [
                            "x = 1",
                            "[families.trap]",
                            "[families.lora.more]",
                            "levels = [0]",
                            'placements = ["x"]',
                            "[[families]]",
                        ]
                    ),
                )
            else:
                return damaged(text.encode(), rng)
            text = "\n".join(lines) + "\n"
        return text.encode()


def _adapter(world: World, data: bytes, rng: random.Random) -> list[object]:
    folder = world.copy("adapter", "adapter")
    (folder / "adapter_config.json").write_bytes(data)
    weights = ["--weights", world.root / "tiny.safetensors"] if rng.randrange(5) else []
    if rng.randrange(3):
        out = world.root / "case" / "merged.safetensors"
        for path in (out, out.with_suffix(".json")):
            path.unlink(missing_ok=True)
        return ["merge", folder, "--out", out, *weights]
    out = world.root / "case" / "masks"
    shutil.rmtree(out, ignore_errors=True)
    return ["predict", folder, world.root / "one", "--out", out, *weights]


def _card(world: World, data: bytes, rng: random.Random) -> list[object]:
    file = world.copy("tiny.safetensors", "theirs.safetensors")
    file.with_suffix(".json").write_bytes(data)
    if rng.randrange(4):
        return ["backbones", "info", file]
    return ["adapters", "list", "--weights", file]


def _config(world: World, data: bytes, rng: random.Random) -> list[object]:
    look = rng.randrange(3) == 0
    folder = world.copy("done" if look else "broken", "run")
    (folder / "config.json").write_bytes(data)
    if look:
        return ["report", folder]
    return ["adapt", "--resume", folder, "--weights", world.root / "tiny.safetensors"]


def _result(world: World, data: bytes, rng: random.Random) -> list[object]:
    folder = world.copy("done", "run")
    (folder / "result.json").write_bytes(data)
    if rng.randrange(8) == 0:
        return ["report", folder]
    (folder / "checkpoint").mkdir()
    return ["adapt", "--resume", folder]


def _trace(world: World, data: bytes, rng: random.Random) -> list[object]:
    folder = world.copy("done", "run")
    (folder / "trace.jsonl").write_bytes(data)
    if rng.randrange(10) == 0:
        return ["report", folder]
    return [
        "inspect",
        folder,
        *(["--replay"] if rng.randrange(2) else ["--unit", "*"] if rng.randrange(2) else []),
    ]


def _profile(world: World, data: bytes, rng: random.Random) -> list[object]:
    (world.root / "case").mkdir(exist_ok=True)
    file = world.root / "case" / "mine.toml"
    file.write_bytes(data)
    return ["adapters", "list", "--profile", file, "--weights", world.root / "tiny.safetensors"]


def _dataset(world: World, data: bytes, rng: random.Random) -> list[object]:
    folder = world.copy("toy", "data")
    (folder / "dataset.json").write_bytes(data)
    return ["data", "check", folder]


def _datalist(world: World, data: bytes, rng: random.Random) -> list[object]:
    folder = world.copy("listed", "data")
    (folder / "datalist.json").write_bytes(data)
    return ["data", "check", folder]


KINDS = {
    "adapter": Kind("adapter/adapter_config.json", frozenset({0, 5, 8}), _adapter),
    "card": Kind("tiny.json", frozenset({0, 2, 5}), _card),
    "config": Kind("broken/config.json", frozenset({0, 2, 3, 4, 5, 6}), _config),
    "result": Kind("done/result.json", frozenset({0, 2}), _result),
    "trace": Kind("done/trace.jsonl", frozenset({0, 2, 7}), _trace),
    "profile": Profile("", frozenset({0, 2, 4}), _profile),
    "dataset": Kind("toy/dataset.json", frozenset({0, 3}), _dataset),
    "datalist": Kind("listed/datalist.json", frozenset({0, 3}), _datalist),
}


def problem_of(kind: Kind, outcome: Outcome, world: World) -> str | None:
    """What went wrong with one document, None where nothing did."""
    found = outcome.problem
    if found is None and world.trap.exists():
        world.trap.unlink()
        found = "command"
    if found is None and outcome.code not in kind.codes:
        found = f"exit code {outcome.code}"
    if found is None and outcome.code and not outcome.said.strip():
        found = "silence"
    left = [path.name for path in (world.root / "case").rglob(".*")]
    return found or (f"left {left}" if left else None)


def fuzz(child: Child, world: World, name: str, seeds: Sequence[int]) -> Counter[str]:
    """Ends by what, over documents of one kind; anything that may not happen fails the test
    with the seeds that show it.
    """
    kind, ends, wrong = KINDS[name], Counter[str](), []
    for seed in seeds:
        rng = random.Random(f"{name}-{seed}")
        data = kind.change(world, rng)
        outcome = child("seapeft", "-q", *kind.line(world, data, rng))
        found = problem_of(kind, outcome, world)
        ends["refused" if outcome.code else "taken" if outcome.code == 0 else "ended"] += 1
        if found is not None:
            ends[found] += 1
            wrong.append(
                f"{name}-{seed}: {found}: {outcome.said.strip()[-300:]} {outcome.commands}"
            )
    assert not wrong, "\n".join([f"{len(wrong)} of {len(seeds)}", *wrong[:20]])
    return ends


@pytest.mark.parametrize("name", ["card", "profile", "dataset", "datalist"])
def test_a_few_changed_documents(child: Child, world: World, name: str) -> None:
    assert fuzz(child, world, name, range(4)).total() == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_changed_documents(child: Child, used_world: World, name: str) -> None:
    count = int(os.environ.get("FUZZ_COUNT", "250"))
    ends = fuzz(child, used_world, name, range(1000, 1000 + count))
    print(f"\n{name}: {count} documents, {dict(ends)}, {child.deaths} deaths")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.skipif(not COMMAND.is_file(), reason="seapeft is not installed beside this Python")
def test_changed_documents_at_the_installed_command(used_world: World, name: str) -> None:
    count, codes = int(os.environ.get("FUZZ_COMMANDS", "40")), Counter[int]()
    environment = {
        "PYTHONPATH": str(used_world.root / "modules"),
        "XDG_DATA_HOME": str(used_world.root / "home"),
        "OMP_NUM_THREADS": "1",
    }
    for seed in range(5000, 5000 + count):
        rng = random.Random(f"{name}-{seed}")
        line = KINDS[name].line(used_world, KINDS[name].change(used_world, rng), rng)
        done = subprocess.run(
            [COMMAND, "-q", *map(str, line)],
            cwd=used_world.root,
            env=os.environ | environment,
            capture_output=True,
            check=False,
            timeout=600,
        )
        said = done.stderr.decode("utf-8", "replace")
        outcome = Outcome(
            done.returncode if done.returncode >= 0 else None, said, 0.0, 0, end="death"
        )
        assert problem_of(KINDS[name], outcome, used_world) is None, (
            f"{name}-{seed}: {done.returncode} {said}"
        )
        codes[done.returncode] += 1
    print(f"\n{name}: {count} through the command, exit codes {dict(codes)}")
