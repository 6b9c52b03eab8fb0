"""The commands of `mdpr`, a module each, and the option that all of them take."""

from __future__ import annotations

import logging

import click


def set_verbose(context: click.Context, option: click.Parameter, verbose: bool) -> None:
    """Show debug messages from here on."""
    if verbose:
        logging.getLogger("mdpr").setLevel(logging.DEBUG)


def accept_verbose(command: click.Command) -> click.Command:
    """`command`, which takes -v behind its name as well as before it; so do the commands of a group."""
    if not any(parameter.name == "verbose" for parameter in command.params):
        flags, text = ["--verbose", "-v"], "Show debug messages, and the traceback of an error."
        command.params.append(click.Option(flags, is_flag=True, expose_value=False, callback=set_verbose, help=text))
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        accept_verbose(inner)
    return command
