"""``python -m vggdeploy`` and the ``vggdeploy`` command."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # errors.EXIT_INTERRUPTED, before anything is imported


def main() -> None:
    """Run the command line; a Ctrl-C while it is still being imported ends like any other."""
    try:
        from vggdeploy.errors import IncompatibleError
        from vggdeploy.system.interpreter import check_interpreter

        try:
            check_interpreter()
        except IncompatibleError as error:  # what prints errors else cannot be imported there
            sys.exit(_told(error.cause, error.hint, error.exit_code))
        from vggdeploy.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


def _told(cause: str, hint: str, code: int) -> int:
    sys.stderr.write(f"error: {cause}\n  fix: {hint}\n")
    return code


if __name__ == "__main__":
    main()
