"""``python -m server`` is the command ``pads-cdc``."""

from server.commands.cli import main

main()
