"""The command line: what verbs there are, and how one is run. Nothing heavy is imported before
a verb runs.
"""

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text
from typer import Option

from sea_peft import __version__
from sea_peft.console import adapt, afterwards, applying, backbones, catalogue, taking_in, torchrun
from sea_peft.console.output import Output, abandon, prepare_streams
from sea_peft.console.verb import Interrupted, error_document, outcome
from sea_peft.console.verbs import Verbs

app = Verbs(
    name="seapeft",
    help=(
        "Adapt a frozen pretrained 3D segmentation network to a few labelled scans, under a"
        " parameter budget.\n\nResearch software, not a medical device."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
backbones.backbones.command("import")(taking_in.import_network)
backbones.backbones.command("try")(taking_in.try_network)
app.add_typer(backbones.backbones, name="backbones")
app.add_typer(catalogue.adapters, name="adapters")
app.add_typer(catalogue.policies, name="policies")
app.add_typer(catalogue.data, name="data")


def _version(asked: bool) -> None:
    if asked:
        print(f"seapeft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    json: Annotated[bool, Option("--json", hidden=True)] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", hidden=True)] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", hidden=True)] = False,
    debug: Annotated[bool, Option("--debug", hidden=True)] = False,
) -> None:
    context.obj = {"json": json, "quiet": quiet, "verbose": verbose, "debug": debug}


for command in (
    adapt.adapt,
    applying.predict,
    applying.evaluate,
    afterwards.inspect,
    afterwards.report,
    afterwards.merge,
    afterwards.export,
    afterwards.suggest,
    afterwards.ui,
    afterwards.doctor,
):
    app.command()(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code; prints an error as one sentence on stderr."""
    command = typer.main.get_command(app)
    prepare_streams()
    try:
        # typer returns the code of an Exit, Ctrl-C included, or else None
        code = int(command.main(list(arguments), prog_name="seapeft", standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except Exception as error:
        sentence, code = outcome(error)
        if not torchrun.speaks():
            return code
        output = Output(json="--json" in arguments)
        if "--debug" in arguments:
            output.notes.print(Text("".join(traceback.format_exception(error))), soft_wrap=True)
        if not sentence:
            return code  # no verb was given, and typer has shown the help
        usage = getattr(error, "ctx", None)
        if usage is not None:
            sentence += f" Try `{usage.command_path} --help`."
            if output.json:
                output.result(error_document(error))
        try:
            output.fail(sentence)
        except OSError:
            abandon(sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            abandon(sys.stdout)
        return code


def main() -> None:
    """The command `seapeft`."""
    # a queue or a shutdown should end a run like Ctrl-C: files whole, MLflow up to date, and the
    # run resumable
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = run(sys.argv[1:])
    signal.signal(
        signal.SIGTERM, signal.SIG_DFL
    )  # all is said; torchrun asks once more while the interpreter ends
    sys.exit(code)
