"""
Notices that stay: an optional app that keeps each notice in a row until its user has read it.

It may be imported before Django's apps are ready, as by the module of another app's models.
"""

from .writing import amark, anotify, anotify_many, aunread, mark, notify, notify_many, unread

__all__ = ["amark", "anotify", "anotify_many", "aunread", "mark", "notify", "notify_many", "unread"]
