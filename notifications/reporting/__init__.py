"""
How the progress of a job reaches its topic: what is told, when, and by whom.

``counts.py`` and ``values.py`` say how far a job is, ``reporter.py`` when that is published, from a thread
(``thread_reporter.py``) or a task (``task_reporter.py``) beside the job, ``sharing.py`` what is told of a job that
several processes do, and ``terminal.py`` draws it. ``progress.py``, ``tracking.py`` and ``jobs.py`` at the root are
what a site uses.
"""
