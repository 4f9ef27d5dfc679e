"""The kit's command line: `python -m kit list`, `copy`, `compare`, `report`.

A command is a function; its signature defines the command's arguments. The function is
imported when the command is run, so that no command needs another's packages.
"""

import importlib
import sys
from collections.abc import Callable, Sequence

COMMANDS = {  # name of the command: module and function
    "list": ("kit.tools.catalog", "show"),
    "copy": ("kit.tools.copy_recipe", "copy"),
    "compare": ("kit.tools.compare", "compare"),
    "report": ("kit.tools.report", "report"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments begin with.

    Args:
        args: Arguments. Defaults to `None`: the command line's.
    """
    try:
        import tyro
    except ImportError as error:
        sys.exit(
            f"python -m kit needs {error.name}, which isn't installed: "
            '`python -m pip install "keras-algorithm-kit[recipes]"`, or `-e '
            '".[recipes]"` in a checkout.'
        )
    args = list(sys.argv[1:] if args is None else args)
    program = "python -m kit"
    if not args or args[0] not in COMMANDS:  # help, or an error that lists the names
        functions = {name: load(name) for name in COMMANDS}
        tyro.extras.subcommand_cli_from_dict(functions, prog=program, args=args)
        return
    program = f"{program} {args[0]}"
    try:
        if status := tyro.cli(load(args[0]), prog=program, args=args[1:]):
            sys.exit(status)
    except (ValueError, OSError, ImportError) as error:
        # Bad input: the message explains it, a traceback would only distract.
        sys.exit(f"{program}: {error}")


def load(command: str) -> Callable:
    """Imports the function of a command."""
    module, function = COMMANDS[command]
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    main()
