"""Sends the tester messages that are too large, too deep, or make no sense."""

import os
import random
import sys

frame = sys._getframe()
while "peer" not in frame.f_code.co_filename:
    frame = frame.f_back
writer = frame.f_locals["self"]._writer


def f(x):
    kind = x % 5
    data = [
        b"\xff\xff\xff\xff" + b"x" * 100_000,
        (2_000_000).to_bytes(4, "big") + b"[" * 2_000_000,
        (30_000_000).to_bytes(4, "big") + b'["result", 3, [], ' + b"9" * 29_999_981 + b"]",
        random.randbytes(100_000),
        (30).to_bytes(4, "big") + b'["result", 3, [], ["r", -1]]  ',
    ][kind]
    os.write(writer, data)
    os._exit(0)


# test: assert candidate(0) == 9
# test: assert candidate(1) == 9
# test: assert candidate(2) == 9
# test: assert candidate(3) == 9
# test: assert candidate(4) == 9
