"""Code that the tests of several folders share, except fixtures."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository's folder."""

BUNDLED = tuple(sorted(path.parent.name for path in ROOT.glob("sql/*/affects.toml")))
"""The names of the bundled mappings."""
