"""``python -m upg``: the command line."""

import sys

from upg import _upg


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    sys.exit(_upg.main(["upg", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
