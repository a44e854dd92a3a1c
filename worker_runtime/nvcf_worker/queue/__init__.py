"""Pulling requests from the broker: connection, pulls, slots, in-flight signals, redelivery."""
