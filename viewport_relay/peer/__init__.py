"""A reference daemon and client: both outer roles of the wire, for demonstration, diagnosis and tests.

The peers import nothing of the relay, so that a misreading of the wire protocol on one side shows up on the
other. Bottom up: `base64url`, `frames`, `errors`; `e2e` and `envelope` (end to end), `link`
(to the relay); `daemon` and `client` (frames in, frames out); `upgrade`, `connection`, `reconnect` (sockets);
`platform_api` (tokens); `transcript` (the session of the demonstration).
"""
