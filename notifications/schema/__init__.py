"""
The wire protocol as documents for machines: JSON Schemas, an AsyncAPI document, TypeScript types.

All are made from the structs of ``messages.py`` and ``protocol/frames.py``, and from nothing else: they are the same on
every site. ``manage.py notifications_schema`` prints them.
"""
