"""Where the service keeps its events."""
