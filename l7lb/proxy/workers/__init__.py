"""The processes of the data plane: the keeper, which holds sockets and children, and the worker's shell."""
