"""The building blocks of reinforcement-learning agents.

Environments and episodes, policies, returns, replay, exploration, normalization, and
the training loop that all agents share.
"""
