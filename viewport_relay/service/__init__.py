"""The relay as Twisted services: `Relay` admits and routes, `Listeners` accept connections, twistd runs `Process`."""
