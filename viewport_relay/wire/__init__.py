"""The wire: frames, the upgrade, the WebSocket protocol."""
