"""Sockets in the world: streams, datagrams and the names of hosts."""
