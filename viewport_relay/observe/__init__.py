"""What happened: the event log and the counters."""
