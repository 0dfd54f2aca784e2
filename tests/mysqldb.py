"""Puts PyMySQL, which is pure Python, in the place of MySQLdb: Django imports that, and it has no wheels for Linux."""

import pymysql  # type: ignore[import-untyped]  # has no types

pymysql.version_info = (2, 2, 8, "final", 0)  # of MySQLdb: Django asks whether it is new enough
pymysql.install_as_MySQLdb()
