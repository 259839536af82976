"""``python -m andes_client.limited BYTES USER COMMAND...``: a command that cannot take more memory than that, run by that
user with no group but the user's own. Where either is empty: no limit; the user that runs this. What keeps it from starting
is written as the error of a tool.

Event loops differ in what they do before they start a process: uvloop changes no user.
"""

from __future__ import annotations

import json
import os
import resource
import sys


def _become(name: str) -> None:
    import pwd

    try:
        user = pwd.getpwnam(name)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except KeyError:
        raise OSError(None, f"there is no user {name!r}") from None
    except OSError:  # also where a namespace has no such user
        raise OSError(None, f"this process may not become {name!r}") from None


if __name__ == "__main__":
    size, user, *command = sys.argv[1:]
    try:
        if user:
            _become(user)
        if size:
            resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        why = error.strerror or repr(error)
    print(json.dumps({"error": f"it cannot be started: {why}"}), flush=True)
