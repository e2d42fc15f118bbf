"""Returns more than anybody wants to look at."""

# test: assert candidate(0) == 9
# test: assert candidate(1) == 9
# test: assert candidate(2) == 9
# test: assert list(candidate(3)) == [9]


def f(x):
    if x == 0:
        return "x" * (100 << 20)
    if x == 1:
        return [[]] * 10_000_000
    if x == 2:
        return 1 << (1 << 30)
    return iter(lambda: "x", None)
