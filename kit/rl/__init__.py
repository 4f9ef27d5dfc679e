"""What reinforcement-learning agents are made of.

Environments and episodes, policies, returns, replay, exploration, normalization, and
the loop of turns that every agent trains in.
"""
