"""Reports tables whose changes never arrive, and tables whose updates Postgres refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc.observer import Observer

_LOSSY = "lossy"
_REFUSED = "publication"


class TableTroubles:
    """The tables that were reported last. Owned by the applier's thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lossy: list[str] = []
        self._refused: list[str] = []

    @property
    def lossy(self) -> bool:
        """Whether changes of some table never arrive."""
        return bool(self._lossy)

    def report_lossy(self, tables: list[str]) -> None:
        """Report these tables if they are others than before. ``tables`` is `Catalog.lossy`."""
        if tables != self._lossy:
            self._lossy = tables
            lacks = f"the stream lacks {' and '.join(tables)}"
            text = f"{lacks}: until this is corrected, the mapping is polled; see pads-cdc check"
            self._observer.trouble(_LOSSY, text if tables else None)

    def report_refused(self, tables: list[str]) -> None:
        """Report these tables if they are others than before. ``tables`` is `Catalog.refusing`."""
        if tables != self._refused:
            self._refused = tables
            text = (
                f"Postgres refuses every UPDATE and DELETE of {', '.join(tables)}, for everybody: the"
                " publication does not have all columns of the replica identity; run pads-cdc setup, or see"
                " pads-cdc check"
            )
            self._observer.trouble(_REFUSED, text if tables else None)
