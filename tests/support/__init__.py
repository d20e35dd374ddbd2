"""Code that the tests of several folders share, except fixtures."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository's folder."""

_RELEASE = Path("/etc/os-release")
ON_DEBIAN = _RELEASE.exists() and "ID=debian" in _RELEASE.read_text().split()
"""Whether the system's mirror has programs of other Debian releases. Ubuntu's has none, and no package of a
browser: tests that need those are skipped there.
"""

BUNDLED = tuple(sorted(path.parent.name for path in ROOT.glob("sql/*/affects.toml")))
"""The names of the bundled mappings."""
