"""Imports the settings of all commands, so that each command knows the names that only others read."""

from server.config.authorize_settings import AuthorizeSettings
from server.config.settings import RelaySettings, Settings

__all__ = ["AuthorizeSettings", "RelaySettings", "Settings"]
