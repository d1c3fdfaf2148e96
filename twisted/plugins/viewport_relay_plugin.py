"""Makes `twistd viewport-relay` known; everything else is in viewport_relay.tap."""

from twisted.application.service import ServiceMaker

viewport_relay = ServiceMaker(
    "Viewport relay",
    "viewport_relay.tap",
    "Relay end-to-end encrypted frames between coding-agent daemons and clients.",
    "viewport-relay",
)
