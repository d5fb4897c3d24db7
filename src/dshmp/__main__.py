"""The `dshmp` command, and `python -m dshmp`, which launchers of several processes need."""

from dshmp.common.signals import heeded


def main() -> None:
    """As `dshmp.cli.main`, with signals heeded while that is loaded."""
    with heeded():
        from dshmp.cli import run

        run()


if __name__ == "__main__":
    main()
