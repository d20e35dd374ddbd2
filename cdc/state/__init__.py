"""What outlives the process: revisions, positions and tombstones, and how tokens are judged by them."""
