"""The command `viewport-relay`."""
