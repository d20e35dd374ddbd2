"""The settings of every command, imported together: each one knows the names that only others read."""

from server.config.authorize_settings import AuthorizeSettings
from server.config.settings import RelaySettings, Settings

__all__ = ["AuthorizeSettings", "RelaySettings", "Settings"]
