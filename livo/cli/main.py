"""The command line: `livo COMMAND`, each of `livo.cli`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from typing import NoReturn

from livo.cli import benchmark, build, calibrate, env, evaluate, generate, inspect, papertown, retrieve, train
from livo.utils.extras import MissingExtra, remedy
from livo.utils.files import is_text

COMMANDS = {
    "generate": generate,
    "inspect": inspect,
    "retrieve": retrieve,
    "build": build,
    "train": train,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "env": env,
    "papertown": papertown,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: done, 2: bad input, 1: an unexpected error, 130: interrupted; errors are one line each."""
    words = sys.argv[1:] if argv is None else argv
    for number, word in enumerate(words, 1):
        if not is_text(word):
            print(f"livo: argument {number} is not UTF-8: {word!r:.80}; write it again, or rename the file", file=sys.stderr)
            return 2
    args = _parser().parse_args(words)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of loading weights, which takes no time
    _show_log()
    try:
        COMMANDS[args.command].run(args)
        sys.stdout.flush()  # a reader that has gone, as in `livo ... | head`, is noticed here and not at exit
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _report(args, "interrupted", 130)
    except ModuleNotFoundError as error:
        name = error.name or "a package"
        return _report(args, f"the package {name} is not installed: {remedy(name)}", 2)
    except (ValueError, OSError, MissingExtra) as error:
        return _report(args, describe(error), 2)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
            return _report(args, f"not enough memory ({describe(error)}); draw fewer or smaller images at once", 2)
        what = f"unexpected {type(error).__name__}: {describe(error)}"
        return _report(args, f"{what} (use --debug for the traceback, and please report it)", 1)
    return 0


def _show_log() -> None:
    """Notes of the package go to stderr as they are; of several processes the first one's alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        logging.lastResort.setLevel(logging.INFO)
        logging.getLogger("livo").setLevel(logging.INFO)


def _report(args: argparse.Namespace, message: str, code: int) -> int:
    if args.debug:
        traceback.print_exc()
    print(f"livo {args.command}: {message}", file=sys.stderr)
    return code


def describe(error: BaseException) -> str:
    """What an error says, in one line. Python's own errors of files name the file first, without a number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Errors are one line, as those of commands are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="livo", description="Keep a text-to-image model to stated values, with its backbone frozen.")
    _add_debug(parser, False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.HELP, description=command.HELP, epilog=f"example: {command.EXAMPLE}")
        command.add_arguments(own)
        _add_debug(own, argparse.SUPPRESS)  # absent here, what stands before the command holds
    return parser


def _add_debug(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")
