"""Sessions: one handler for each role, joining and leaving, the Noise link, daemons on other relays."""
