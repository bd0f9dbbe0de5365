"""`adapt --from RUN`: what a new run takes over from an earlier one after more scans have been
labelled.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sea_peft import documents
from sea_peft.adapters import Adapted
from sea_peft.artefacts.adapter_file import (
    CONFIG_NAME,
    MODEL_NAME,
    AdapterConfig,
    load_adapter_files,
)
from sea_peft.artefacts.profile import Profile
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.atomic import PRIVATE, make_folder, write_bytes
from sea_peft.errors import BudgetError, UsageError, WeightsError
from sea_peft.jobs.model import Backbone
from sea_peft.jobs.options import AdaptOptions
from sea_peft.loop import events
from sea_peft.loop.space import Space
from sea_peft.loop.utility import UNMEASURED, Estimate, UtilitySettings, observe


@dataclasses.dataclass(frozen=True, eq=False)
class Earlier:
    """The earlier run that a new one continues.

    Attributes:
        folder: its run folder.
        config: of its adapter.
        tensors: of its adapter, by name.
        sha256: of the file with these tensors.
        shots: names of the scans that it was trained on.
        estimates: unit of its adapter → the estimate from its audits, and from those of the run
            that it continued itself.
    """

    folder: RunFolder
    config: AdapterConfig
    tensors: Mapping[str, torch.Tensor]
    sha256: str
    shots: frozenset[str]
    estimates: Mapping[str, Estimate]

    @property
    def carried(self) -> dict[str, Estimate]:
        """Its adapter's units, each with its estimate."""
        return {unit: self.estimates.get(unit, UNMEASURED) for unit in self.units}

    @property
    def units(self) -> tuple[str, ...]:
        """Ids of its adapter's units."""
        return tuple(unit.id for unit in self.config.units)

    def options(self, asked: AdaptOptions) -> AdaptOptions:
        """The options, with the voxel size and patch that the units were trained with. Raises
        UsageError if others, or impossible ones, were asked for.
        """
        spacing, patch = self.config.recipe.spacing, self.config.window.patch
        for name, given, value in (
            ("spacing", asked.spacing, spacing),
            ("patch", asked.patch, patch),
        ):
            if given is not None and given != value:
                raise UsageError(
                    f"--from {self.folder.path}: its adapter was trained with --{name}"
                    f" {_commas(value)}, not {_commas(given)}; leave --{name} out."
                )
        if asked.test == "cv":
            raise UsageError(
                "--test cv scores every shot by an adapter that never saw it, and the adapter of"
                f" --from {self.folder.path} has; choose another --test."
            )
        return dataclasses.replace(asked, spacing=spacing, patch=patch)

    def require_backbone(self, backbone: Backbone) -> None:
        """Raise WeightsError if its adapter is for another network."""
        card, own = backbone.pretrained.card, self.config.backbone
        if own.sha256 != backbone.pretrained.sha256:
            raise WeightsError(
                f"--from {self.folder.path}: its adapter is for {own.weights} ({own.architecture}),"
                f" and this run would have {card.name} ({card.architecture}); choose its network"
                " with --backbone or --weights, or leave --from out."
            )

    def require_units(
        self, space: Space, labels: Sequence[str], profile: Profile, policy: str
    ) -> None:
        """Raise UsageError or BudgetError if its labels, units or head do not fit a run with this
        profile and policy.
        """
        asked = f"--profile {profile.name} and --policy {policy}"
        if new := [label for label in labels if label not in self.config.labels]:
            raise UsageError(
                f"--from {self.folder.path}: its adapter has no label {new[0]}"
                f" ({', '.join(self.config.labels)}); choose among these with --label, or leave"
                " --from out."
            )
        if odd := [unit for unit in self.units if unit not in space.by_id]:
            raise UsageError(
                f"--from {self.folder.path}: its unit {odd[0]} is not on offer under {asked};"
                " choose those of that run."
            )
        kept = {"train": 0, "new": self.config.head.classes, "frozen": None}[
            profile.head
        ]  # rows that this run would not count
        if any(
            tensor[:kept].any() for name, tensor in self.tensors.items() if name.startswith("head/")
        ):
            raise UsageError(
                f"--from {self.folder.path}: it has fitted more of the head than would be counted"
                f" under {asked}; choose those of that run."
            )
        used = space.used(self.units)
        if used > space.limit:
            raise BudgetError(
                f"--from {self.folder.path}: its units and the head take {used:,} of"
                f" {space.limit:,} {space.kind.many}; raise --budget."
            )

    def begin(self, model: Adapted, labels: Sequence[str]) -> None:
        """Load the tensors that the earlier run ended with into the model's head and units. Raises
        WeightsError.

        Of the head, labels that are not among `labels` are left out.
        """
        own = list(self.config.labels)
        fresh = [
            label for label, row in zip(own, self.config.head.rows, strict=True) if row is None
        ]
        rows = [
            *range(model.head.classes),
            *(model.head.classes + fresh.index(label) for label in labels if label in fresh),
        ]
        try:
            head = {name: self.tensors[f"head/{name}"][rows] for name in model.head.state_dict()}
            model.head.load_state_dict(head)
            model.bank.load_state_dict(
                {k: t for k, t in self.tensors.items() if not k.startswith("head/")}
            )
        except (KeyError, IndexError, RuntimeError) as error:
            raise WeightsError(
                f"--from {self.folder.path}: its adapter does not fit this network ({error})."
            ) from error

    def keep(self, folder: Path) -> None:
        """Copy everything that resuming needs, so that later changes to the earlier run do not
        affect this one. Raises DiskError.
        """
        kept = RunFolder(folder)
        make_folder(kept.adapter)
        for source, target in (
            (self.folder.adapter / CONFIG_NAME, kept.adapter / CONFIG_NAME),
            (self.folder.adapter / MODEL_NAME, kept.adapter / MODEL_NAME),
            (self.folder.trace, kept.trace),
        ):
            write_bytes(target, source.read_bytes())
        write_bytes(kept.case_names, self.folder.case_names.read_bytes(), mode=PRIVATE)


def read_earlier(path: Path) -> Earlier:
    """Read a finished run.

    Raises:
        UsageError: it is no run folder, or no longer says which scans its shots were.
        WeightsError: it has no adapter, or a damaged one.
    """
    folder = RunFolder.open(path)
    config, tensors = load_adapter_files(folder.adapter)
    trace = read_trace(folder.trace)
    started = next((event for event in trace if isinstance(event, events.RunStarted)), None)
    names = folder.read_case_names()
    if started is None:
        raise UsageError(f"--from {path}: its trace.jsonl is empty; give a finished run.")
    hashed = [case for role in ("support", "audit") for case in started.split[role]]
    if lost := [case for case in hashed if case not in names]:
        raise UsageError(
            f"--from {path}: its cases.json does not name its shot {lost[0]}; it is not of this"
            " run."
        )
    sha256 = hashlib.sha256((folder.adapter / MODEL_NAME).read_bytes()).hexdigest()
    estimates = _estimates(trace, started)
    own = {unit.id: estimates[unit.id] for unit in config.units if unit.id in estimates}
    return Earlier(folder, config, tensors, sha256, frozenset(names[case] for case in hashed), own)


def _estimates(trace: Sequence[events.Event], started: events.RunStarted) -> dict[str, Estimate]:
    """Unit → estimate from its audits, in order. Leaves out those of a single shot, made on labels
    of the scan that it was trained on.
    """
    policy = started.settings.get("policy") or {}
    settings = (
        documents.check(UtilitySettings, policy["utility"])
        if "utility" in policy
        else UtilitySettings()
    )
    found = documents.check(dict[str, Estimate], policy.get("carried") or {})
    for event in trace:
        if isinstance(event, events.Audited) and event.independent:
            for row in event.rows:
                found[row.unit] = observe(
                    found.get(row.unit, UNMEASURED), row.delta, row.standard_error, settings
                )
    return found


def _commas(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
