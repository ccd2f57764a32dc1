"""What it costs to get the kernel of each candidate ready, in runs of a kernel that is."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from harness.bisection.choice import Costs
from harness.bisection.search import Tip, Where
from harness.campaign.bisection.steps import Course

#: A kernel that is in the cache has to be booted once. docs/performance.md has the measurements.
CACHED, FETCHED = 4.0, 10.0
#: One that is built: what every build takes (make looks at all files, and links), what a change of a header or of the
#: configuration adds, and a build of everything.
REBUILT, WIDE, BUILT = 15.0, 60.0, 200.0


def costs_of(course: Course, ready: Collection[Where], last: Where | None) -> Costs:
    """Return the costs of all candidates.

    :param ready: what has been run.
    :param last: what was built last: the files that differ from it have to be compiled. None if nothing was.
    """
    size = len(course.steps)
    if course.fetched:
        build = np.full(size, FETCHED)
    elif last is None:
        build = np.full(size, BUILT)
    else:
        wide = np.asarray(course.wide or np.zeros(size), np.float64)
        newer = (last is Tip.GOOD) is course.fixed
        before = float(wide[last]) if isinstance(last, int) else float(wide[-1]) if newer else 0.0
        build = np.minimum(REBUILT + WIDE * np.abs(wide - before), BUILT)
    build[[at for at, there in enumerate(course.cached) if there]] = CACHED
    build[[at for at in ready if isinstance(at, int)]] = 0.0
    return Costs(build)
