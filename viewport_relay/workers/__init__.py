"""Several worker processes behind one listening port (RELAY_WORKERS): docs/topics/workers.md."""
