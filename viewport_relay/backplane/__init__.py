"""The backplane: presence and a bus between several relays, over Redis or the platform."""
