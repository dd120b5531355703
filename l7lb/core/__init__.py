"""The words everything else is said in: facts, actions, snapshot, contracts, errors.

Nothing here imports another part of l7lb, opens a socket, reads a clock or logs.
"""
