"""Settings, and how their values are read and shown."""
