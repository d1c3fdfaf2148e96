"""The settings of TLS: towards peers and towards the platform."""

from __future__ import annotations

from attrs import frozen

from viewport_relay.config.table import setting
from viewport_relay.config.values import TEXT, choice


@frozen(slots=False)
class TlsSettings:
    """Certificates and keys. TLS ends in the relay when a certificate is set, else in front of it."""

    # fmt: off
    tls_cert_path: str | None = setting(
        "RELAY_TLS_CERT_PATH", TEXT, None, "the relay's certificate chain, PEM, leaf first; read again when it "
        "changes"
    )
    tls_key_path: str | None = setting(
        "RELAY_TLS_KEY_PATH", TEXT, None, "its private key, PEM; no other user may read it"
    )
    tls_termination: str = setting(
        "RELAY_TLS_TERMINATION", choice("self", "platform"), "self", "platform: TLS ends in front of the relay"
    )
    server_ca_cert_path: str | None = setting(
        "RELAY_SERVER_CA_CERT_PATH", TEXT, None, "CA that signs the platform's certificate, PEM",
        default_text="the system's"
    )
    server_client_cert_path: str | None = setting(
        "RELAY_SERVER_CLIENT_CERT_PATH", TEXT, None, "client certificate for the platform, PEM: mutual TLS is on "
        "when it is set"
    )
    server_client_key_path: str | None = setting(
        "RELAY_SERVER_CLIENT_KEY_PATH", TEXT, None, "its private key, PEM; no other user may read it"
    )
    server_client_key_passphrase: str | None = setting(
        "RELAY_SERVER_CLIENT_KEY_PASSPHRASE", TEXT, None, "its passphrase", secret=True
    )
