"""Certificate checks of the doctor: remaining validity and host names. No I/O."""

from __future__ import annotations

import datetime

from cryptography import x509

#: Days before a certificate expires at which the doctor warns.
WARNING_DAYS = 14


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate expires; negative after that."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86_400


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate's subjectAltName matches a host name or IP address (RFC 9525; a wildcard matches one label)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    host = host.lower()
    for name in names.get_values_for_type(x509.DNSName):
        if name.lower() == host or (name.startswith("*.") and host.partition(".")[2] == name[2:].lower()):
            return True
    return host in {str(address) for address in names.get_values_for_type(x509.IPAddress)}
