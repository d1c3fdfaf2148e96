"""The event log, counters, problems and the verdict."""
