"""Problems, the verifiers that check answers to them, and worked solutions to learn from.

Nothing here imports torch or a training framework, so a problem file can be checked before any large import.
"""
