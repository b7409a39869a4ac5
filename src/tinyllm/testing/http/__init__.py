"""HTTP in the world: servers, clients, and what a request meets on its way between them."""
