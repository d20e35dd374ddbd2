"""``python -m tests.support.long_pauses serve``: a server whose pauses between short reads last 2 s."""

from __future__ import annotations

from cdc.requery import throttle
from server.commands.cli import main

if __name__ == "__main__":
    throttle._MOST = 2.0
    throttle._SHARE = 0.0001  # any read uses up more than has been saved
    main()
