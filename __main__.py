"""Command line of winback: ``winback demo | run | up | export | rollback | bench | benchmark``."""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from winback import __version__
from winback.models.errors import SettingsError, WinbackError
from winback.models.settings import DEPLOYMENT_SETTINGS, Settings, parse_text

FAILED, WRONG_CALL = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed or held, 2 the command line or configuration is wrong."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        return _dispatch(command, options)
    except SettingsError as error:
        print(f"winback: {error}", file=sys.stderr)
        return WRONG_CALL
    except WinbackError as error:
        print(f"winback: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("winback: interrupted; nothing that was not yet published will be", file=sys.stderr)
        return FAILED


def _dispatch(command: str, options: dict[str, Any]) -> int:
    from winback.operators import commands  # imported late: --help stays quick

    data_dir = options.pop("data_dir")
    if command == "run":
        return commands.run(_given(options), data_dir)
    if command == "export":
        return commands.export(options["as_of"].isoformat(), options["output"], data_dir)
    if command == "bench":
        return commands.bench(**options, data_dir=data_dir)
    if command == "benchmark":
        options["settings"] = _named_settings(options["settings"])
        options["dials"] = _pairs(options["dials"])
        return commands.benchmark(**options, data_dir=data_dir)
    return {"demo": commands.demo, "up": commands.up, "rollback": commands.rollback}[command](
        data_dir
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="winback", description="Decides every day which customer gets which coupon."
    )
    parser.add_argument("--version", action="version", version=f"winback {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _command(commands, "demo", "embedded servers, real sample data, one daily run, its result")
    run = _command(commands, "run", "one daily run against winback_warehouse and winback_redis")
    _add_settings(run)
    _command(commands, "up", "both servers and Airflow with its UI, until Ctrl-C")
    export = _command(commands, "export", "write a published coupon list as CSV")
    export.add_argument("--as-of", type=_date, required=True, help="decision date, YYYY-MM-DD")
    export.add_argument("-o", "--output", type=Path, required=True, help="the CSV file")
    _command(commands, "rollback", "serve the previous Q-table from Redis again")
    _add_bench(commands)
    _add_benchmark(commands)
    return parser


def _add_bench(commands: Any) -> None:
    command = _command(commands, "bench", "each step's speed and memory beside today's tools")
    command.add_argument("steps", nargs="*", metavar="STEP", help="empty: all")
    command.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="instead of each step's own (customers, rows, states, …)",
    )
    command.add_argument("--quick", action="store_true", help="small sizes: minutes, not hours")
    for option, default, help_text in (
        ("--repeats", 3, "runs of each side, in turns (default: %(default)s)"),
        ("--weeks", 26, "of history in the warehouses it makes (default: %(default)s)"),
    ):
        command.add_argument(option, type=int, default=default, metavar="N", help=help_text)
    command.add_argument("-o", "--output", type=Path, metavar="FILE.md", help="page to write")


def _add_benchmark(commands: Any) -> None:
    command = _command(commands, "benchmark", "policies in worlds whose best policy is known")
    for option, default, help_text in (
        ("--worlds", 4, "how many; they go through the families in turn (default: %(default)s)"),
        ("--customers", 20_000, "of each world (default: %(default)s)"),
        ("--weeks", 40, "of log before the decision (default: %(default)s)"),
        ("--loop", 0, "let the worlds live on for so many weeks under the policies' own decisions"),
    ):
        command.add_argument(option, type=int, default=default, metavar="N", help=help_text)
    command.add_argument(
        "--families", nargs="+", default=(), metavar="NAME", help="of worlds; a wrong name: a list"
    )
    command.add_argument(
        "--dial",
        dest="dials",
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        help="of all worlds: confounding=2 offers to likely buyers; a wrong name: a list of all",
    )
    command.add_argument(
        "--policies", nargs="+", default=(), metavar="NAME", help="empty: all; in a loop: winback"
    )
    command.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        help="settings of winback, for all its variants",
    )
    command.add_argument("--fresh", action="store_true", help="run again what the table has")
    command.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")


def _named_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` texts as settings."""
    given = _pairs(pairs)
    unknown = sorted(set(given) - set(Settings.model_fields))
    if unknown:
        raise SettingsError(f"--set: no such settings: {', '.join(unknown)}")
    return _given(given)


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in pairs)


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    command.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("WINBACK_DATA_DIR", "~/.winback")).expanduser(),
        help="folder of the embedded servers, logs and artifacts (default: %(default)s)",
    )
    return command


def _add_settings(command: argparse.ArgumentParser) -> None:
    for name, field in Settings.model_fields.items():
        if name in DEPLOYMENT_SETTINGS:
            continue
        option = f"--{name.replace('_', '-')}"
        help_text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            command.add_argument(
                option, action=argparse.BooleanOptionalAction, default=None, help=help_text
            )
        else:
            command.add_argument(option, metavar="VALUE", default=None, help=help_text)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Only what the person typed; pydantic reads the texts."""
    return {
        name: parse_text(Settings.model_fields[name].annotation, value)
        if isinstance(value, str)
        else value
        for name, value in options.items()
        if value is not None
    }


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date like 2026-01-31, came {text!r}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
