"""The network as the user typed it, apart from what files say. Code is imported here and nowhere
else, and only if the user typed it.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from sea_peft.backbones.growth import growing
from sea_peft.backbones.limits import per_axis
from sea_peft.backbones.registry import Architecture, architecture
from sea_peft.errors import WeightsError


@dataclasses.dataclass(frozen=True)
class Typed:
    """The backbone (a name or package.module:factory) and the weights (a name or a file) of this
    very command, or of a Python program's own call.

    A plain string, wherever it comes from, can only name something registered or installed
    (`architecture`, `load_pretrained`). Only a `Typed` is used as code or as the path of a file, so
    never put a name from a file into one.
    """

    backbone: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and is_code(self.weights):
            raise WeightsError(
                f"Weights are a name or a file, and {self.weights} is code; give it as the"
                " backbone.",
                "backbone",
            )

    def __bool__(self) -> bool:
        """Whether anything was typed."""
        return self.backbone is not None or self.weights is not None

    @property
    def code(self) -> str | None:
        """The `package.module:factory` that was typed."""
        return self.backbone if self.backbone is not None and ":" in self.backbone else None

    def architecture(self) -> Architecture | None:
        """The architecture that was typed; imports code. Raises UsageError for an unknown name,
        WeightsError for bad code.
        """
        if self.backbone is None:
            return None
        return _from_factory(self.backbone) if self.code else architecture(self.backbone)


NOTHING = Typed()


def is_code(name: str) -> bool:
    """Whether a name has the form `package.module:factory`; a path such as `C:\\x.safetensors`
    has not.
    """
    module, colon, factory = name.partition(":")
    return (
        bool(colon)
        and factory.isidentifier()
        and all(part.isidentifier() for part in module.split("."))
    )


def _from_factory(spec: str) -> Architecture:
    """A user's own network: `factory(in_channels=…, out_channels=…)`, or a factory without
    arguments for a network with fixed channels.
    """
    module_name, _, attribute = spec.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        name = module_name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        here = absent and any(Path(found).exists() for found in (name, f"{name}.py"))
        way = (
            f"{name} lies in this folder: start with PYTHONPATH=."
            if here
            else "give package.module:factory"
        )
        raise WeightsError(f"Backbone {spec!r} could not be imported ({error}); {way}.") from error
    if not callable(factory):
        raise WeightsError(
            f"Backbone {spec!r} is not a function but a {type(factory).__name__}; give"
            " package.module:factory."
        )
    takes = inspect.signature(factory).parameters
    flexible = any(p.kind is p.VAR_KEYWORD for p in takes.values())

    def build(**kwargs: object) -> nn.Module:
        network = factory(**{k: v for k, v in kwargs.items() if flexible or k in takes})
        if not isinstance(network, nn.Module):
            raise WeightsError(
                f"Backbone {spec!r} returned {type(network).__name__}, not a torch.nn.Module."
            )
        return network

    return Architecture(
        name=spec,
        build=growing(build),
        divisor=_declared(factory, "divisor", spec),
        minimum=_declared(factory, "minimum", spec),
        paper=getattr(factory, "paper", "given by the user"),
        licence=getattr(factory, "licence", "given by the user"),
        small={},
        card=getattr(factory, "card", None),
    )


def _declared(factory: Callable[..., object], attribute: str, spec: str) -> int | Sequence[int]:
    """A size that a user's factory declares for its network; 32 by default. Raises WeightsError if
    it is invalid.
    """
    stated: int | Sequence[int] = getattr(factory, attribute, 32)
    try:
        per_axis(stated)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{attribute} of {spec} is {stated!r}; set a whole number from 1 up, or one for each of"
            " D, H and W."
        ) from error
    return stated
