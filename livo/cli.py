"""The command line: `livo COMMAND`, each of `livo.commands`."""

from __future__ import annotations

import argparse
import os
import sys

from livo.commands import benchmark, build, calibrate, env, evaluate, generate, inspect, papertown, retrieve, train

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
    args = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its hints about torchvision and progress bars are not for our users
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        COMMANDS[args.command].run(args)
    except (ValueError, OSError) as error:
        print(f"livo {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"livo {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="livo", description="Keep a text-to-image model to stated values, with its backbone frozen."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, help=command.HELP, description=command.HELP, epilog=f"example: {command.EXAMPLE}")
        )
    return parser
