"""``python -m vggdeploy`` is the ``vggdeploy`` command."""

from vggdeploy.cli.app import main

if __name__ == "__main__":
    main()
