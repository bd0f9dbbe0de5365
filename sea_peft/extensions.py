"""Additions by installed packages: adapter families, backbones and policies, by entry points.

A package names modules under `sea_peft.families`, `sea_peft.backbones` or `sea_peft.policies`.
Importing a module registers its content:

    [project.entry-points."sea_peft.families"]
    gain = "my_package.gain"
"""

from importlib import metadata

from sea_peft.errors import UsageError

_LOADED: set[str] = set()


def way_in(what: str) -> str:
    """For the error about an unknown name: how something of the user's own gets one."""
    return (
        "one of your own is known once an installed package names its module by an entry point,"
        f" sea_peft.{what}"
    )


def load(what: str) -> None:
    """Import the modules that installed packages name under `sea_peft.<what>`, once in a process.

    Raises:
        UsageError: one of them cannot be imported; it names the package.
    """
    if what in _LOADED:
        return
    _LOADED.add(what)  # first: an imported module may ask for what is registered
    for point in sorted(
        metadata.entry_points(group=f"sea_peft.{what}"), key=lambda p: (p.name, p.value)
    ):
        try:
            point.load()
        except Exception as error:
            _LOADED.discard(what)
            package = point.dist.name if point.dist is not None else "an installed package"
            raise UsageError(
                f"{package} adds {what} to sea_peft by {point.value}, which cannot be imported"
                f" ({type(error).__name__}: {error}); mend or uninstall {package}."
            ) from error
