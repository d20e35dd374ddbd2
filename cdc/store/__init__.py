"""The map of endpoints, its log by revision, and the walks of subscribers over the log."""
