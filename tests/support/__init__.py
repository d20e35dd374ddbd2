"""What tests of several folders share and is no fixture."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""

BUNDLED = tuple(sorted(path.parent.name for path in ROOT.glob("sql/*/affects.toml")))
"""The names of the mappings that come along."""
