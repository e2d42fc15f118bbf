"""Takes 10 GB bit by bit, and does not mind being refused."""

blocks = []


def f(x):
    while True:
        try:
            blocks.append(bytearray(b"x" * (1 << 20)))
        except MemoryError:
            continue
