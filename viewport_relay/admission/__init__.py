"""Who may come in: tokens, keys, the platform's word, and the limits on upgrades."""
