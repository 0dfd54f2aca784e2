"""
How the progress of a job reaches its topic: what is told, when, and by whom.

``counts.py`` adds up how far a job is, ``reporter.py`` publishes it from a thread or a task beside the job, and
``terminal.py`` draws it. ``progress.py`` at the root is what a site uses.
"""
