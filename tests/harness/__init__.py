"""Test harness: the real server as a process, and clients with control over every byte they send."""
