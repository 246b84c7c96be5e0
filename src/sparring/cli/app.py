"""The app: commands by name, each imported when it is called, and what happens round a command.

Exit codes: 0 done; 1 ran, but the check failed; 2 bad input; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from sparring.cli import config
from sparring.cli.console import speaks, warnings_as_notes
from sparring.cli.settings import Settings
from sparring.cli.values import check_whole, did_you_mean

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130

EPILOGUE = "Exit codes: 0 done; 1 ran, but the check failed; 2 bad input; 130 stopped with Ctrl-C."

COMMANDS = {
    "demo": ("sparring.cli.demo:demo", "Train, evaluate and attack: from nothing to a report in about three minutes."),
    "evaluate": ("sparring.cli.evaluate:evaluate", "How often does the model withstand attack? Writes a report."),
    "train": ("sparring.cli.train:train", "Train a model that withstands attack; resumes where it was stopped."),
    "attack": ("sparring.cli.attack:attack", "Attack photographs: the 8-bit PNG, and what the model sees."),
    "verify": ("sparring.cli.verify:verify", "Re-check the claim of a result folder; fails on any lie."),
    "lab": ("sparring.cli.lab:lab", "Watch a network being fooled, live in the browser; look through results."),
    "merge": ("sparring.cli.merge:merge", "Make one result out of the shards of an evaluation."),
    "compare": ("sparring.cli.compare:compare", "Two results, sample against sample: is the difference chance?"),
    "doctor": ("sparring.cli.doctor:doctor", "What is wrong with a network, or with its training?"),
    "transfer": ("sparring.cli.transfer:transfer", "Which examples made on one model fool another?"),
    "descent": ("sparring.cli.experiments:descent", "Watch gradient descent find the minimum of x squared + 2."),
    "optimizers": ("sparring.cli.experiments:optimizers", "SGD, RMSprop and Adam attack the same photograph."),
    "rotation": ("sparring.cli.experiments:rotation", "A photograph that is another class at any angle."),
    "fgsm": ("sparring.cli.experiments:fgsm", "FGSM and its variants, beside the table of the paper."),
    "linear": ("sparring.cli.experiments:linear", "The linear explanation of adversarial examples, measured."),
    "power": ("sparring.cli.power:power", "Power iteration, on a matrix and on a network's Hessian."),
}


@dataclass(frozen=True)
class Outcome:
    """What a command hands back: the machine-readable result, and whether its check held."""

    document: dict[str, Any] = field(default_factory=dict)
    code: int = DONE


class Stopped(Exception):
    """Ctrl-C inside a command that can say what is kept and how to go on."""


TEXT = {"train": ("sparring.cli.train_text:train_text", COMMANDS["train"][1])}
"""Commands that have other options behind ``--task text``."""


def _app(tokens: Sequence[str] = ()) -> App:
    text = "--task=text" in tokens or ("--task", "text") in pairwise(tokens)
    app = App(
        name="sparring",
        help="Finds out how a PyTorch model breaks.",
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=_version,
        config=[config.apply, check_whole],  # in this order: the file is looked at, too
        default_parameter=Parameter(negative=(), show_default=_shown),
    )
    for name, (target, summary) in (COMMANDS | TEXT if text else COMMANDS).items():
        app.command(target, name=name, help=summary)
    return app


def _shown(default: Any) -> str | None:
    """The default in --help; what is not set says nothing."""
    return None if default is None or default is False or default == [] else str(default)


def _version() -> str:
    from importlib.metadata import version

    return version("sparring")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never raises for what a user did."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    command = next((token for token in tokens if not token.startswith("-")), "")
    try:
        return _run(tokens, command)
    except KeyboardInterrupt:
        return _complain(command, "stopped; nothing was kept", STOPPED)
    except Stopped as stop:
        return _complain(command, f"stopped; {stop}", STOPPED)
    except BrokenPipeError:
        # The reader has gone (`| head`): no more output, and no complaint at interpreter exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MissingArgumentError as error:
        if error.argument is None or error.keyword is not None:
            return _complain(command, str(error), BAD_INPUT)
        if (typo := _unknown(tokens, command)) is not None:  # more likely the reason than something forgotten
            return _complain(command, typo, BAD_INPUT)
        return _complain(command, f"{error.argument.name} is missing; see sparring {command} --help", BAD_INPUT)
    except Exception as error:
        if "--debug" in tokens:
            traceback.print_exc()
        elif not isinstance(error, (CycloptsError, ValueError, TypeError, OSError, ImportError)):
            # Not a user's mistake that somebody foresaw, so its type is part of the message.
            return _complain(command, f"{type(error).__name__}: {error} (--debug shows where)", BAD_INPUT)
        return _complain(command, str(error), BAD_INPUT)


def _run(tokens: list[str], command: str) -> int:
    app = _app(tokens)
    if command in COMMANDS and {"--help", "-h"} & set(tokens):
        app.help_print([command])  # straight there: parsing first would take half as long again
        return DONE
    function, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False, verbose=False)
    bound.apply_defaults()
    settings = bound.arguments.get("settings")
    if not isinstance(settings, Settings):
        function(*bound.args, **bound.kwargs)
        return DONE
    if settings.print_config:
        sys.stdout.write(config.text(settings, command))
        return DONE
    told = contextlib.nullcontext() if settings.debug else warnings_as_notes()  # --debug shows where they come from
    if not settings.json:
        with told:
            outcome: Outcome = function(*bound.args, **bound.kwargs)
        return outcome.code if speaks() else DONE  # torchrun ends all processes at the first that fails
    with contextlib.redirect_stdout(sys.stderr), told:
        outcome = function(*bound.args, **bound.kwargs)
    if not speaks():
        return DONE
    json.dump(outcome.document, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")
    return outcome.code


def _unknown(tokens: Sequence[str], command: str) -> str | None:
    """A complaint about the first option that the command does not have, None where it has them all."""
    arguments = _app(tokens)[command].assemble_argument_collection()
    known = [name for argument in arguments for name in argument.names if name.startswith("-")]
    for token in tokens:
        name = token.split("=")[0]
        if name.startswith("--") and len(name) > 2 and name.replace("_", "-") not in known:
            return f"Unknown option: {name}.{did_you_mean(name, known)}"
    return None


def _complain(command: str, message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"sparring {command}".rstrip() + f": {line}", file=sys.stderr)
    return code
