"""What a mapping says: queries, tables, and which endpoints a changed row affects. Nothing here waits."""
