"""``python -m vggdeploy`` and the ``vggdeploy`` command."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # errors.EXIT_INTERRUPTED, before anything is imported


def main() -> None:
    """Run the command line; a Ctrl-C while it is still being imported ends like any other."""
    try:
        from vggdeploy.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
