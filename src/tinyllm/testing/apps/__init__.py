"""What puts programs that know nothing of the world into it: their clock, chance, threads, sockets and queues."""
