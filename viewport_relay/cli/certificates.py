"""Certificates as the doctor looks at them: how long they are good, and for whom. No I/O."""

from __future__ import annotations

import datetime

from cryptography import x509

#: Days before a certificate's end at which it is worth a line.
WARNING_DAYS = 14


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate ends; negative when it has."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86_400


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether its subjectAltName has this host name or IP address (RFC 9525; a wildcard stands for one label)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    host = host.lower()
    for name in names.get_values_for_type(x509.DNSName):
        if name.lower() == host or (name.startswith("*.") and host.partition(".")[2] == name[2:].lower()):
            return True
    return host in {str(address) for address in names.get_values_for_type(x509.IPAddress)}
