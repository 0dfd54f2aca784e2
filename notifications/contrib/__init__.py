"""
Integrations with libraries that a site may have, each a module that imports its library, and none a requirement.

Those with queues have one vocabulary: ``progress`` decorates what the queue runs, and ``track`` makes one bar of
several of those, where the queue has groups. ``tracked.py`` is what they share. Nothing else imports them.
"""
