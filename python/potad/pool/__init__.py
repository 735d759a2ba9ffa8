"""Objects that are in memory while pinned or recently used, and in a swap file otherwise."""
