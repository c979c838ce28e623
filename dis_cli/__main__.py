"""``python -m dis_cli`` is the same as ``dis``."""

from dis_cli.cli.app import main

if __name__ == "__main__":
    main()
