"""The Noise link: handshake, keys, policy and records. No transport."""
