"""Random seeds as a function of what they are for, so that no generator state has to be kept or
restored.
"""

import hashlib

NUMERICS = 4
"""Raised with every change of this library that changes a number: what was kept before is not used
any more.
"""


def digest_of(*words: object) -> str:
    """SHA-256 of words and numbers, in hexadecimal digits."""
    return hashlib.sha256("\x1f".join(map(str, words)).encode()).hexdigest()


def seed_for(*purpose: object) -> int:
    """A 63-bit seed that depends on the words and numbers given and on nothing else.

    `seed_for(0, "order", 2, 7)` is the seed of the order of epoch 7 in stage 2 when the recipe's
    seed is 0.
    """
    return int(digest_of(*purpose)[:16], 16) >> 1
