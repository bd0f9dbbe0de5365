"""Groups of verbs, and the layout of their help."""

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Plain:
    """Help without needless types: a flag takes no value, and the name of an argument says what
    it is.
    """

    def get_params(self, context: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if parameter.param_type_name == "argument" or parameter.is_flag:
                parameter.display_type_rich = _no_type
        return parameters


def _no_type(**context: object) -> str:
    return ""


class _Verb(_Plain, TyperCommand):
    pass


class _Group(_Plain, TyperGroup):
    pass


class Verbs(typer.Typer):
    """A group of verbs, which may belong to another group."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        return super().command(name, cls=_Verb, **settings)
