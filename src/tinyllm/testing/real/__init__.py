"""Faults between a real client and a real server: a proxy on the loopback, and namespaces with a bad link."""
