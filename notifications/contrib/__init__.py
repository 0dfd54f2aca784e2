"""
Integrations with libraries that a site may have, each a module that imports its library, and none a requirement.

Nothing else imports them.
"""
