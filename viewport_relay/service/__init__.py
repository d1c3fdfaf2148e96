"""The relay as Twisted services: `Relay` admits and routes, `Listeners` take connections, `Process` is what twistd runs."""
