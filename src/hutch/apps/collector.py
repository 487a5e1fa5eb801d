"""The garbage collector of a process that holds many objects for long."""

import gc


def calm_collector() -> None:
    """Called once all is put together: what is there now stays, and is not looked at again. From then on collect less
    often: with thousands of tasks in memory, each with its coroutines, Python's own thresholds (700 objects) cost more
    than half of the CPU. Reference counts free nearly everything; cycles wait a little longer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
