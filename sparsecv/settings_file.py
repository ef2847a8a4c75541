# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the engine as a TOML file: the only way by which anything that a user typed reaches it.

Scipion starts programs through a shell. Nothing but the name of this file, which the plugin makes up itself, stands on
the command line, so that blanks, quotes or ``$()`` in names and parameters can do no harm.
"""

import hashlib
import json
import os

ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def toml_value(value):
    """Return a bool, number or text as TOML.

    Raises
    ------
    ValueError
        For text that is not Unicode, which a TOML file cannot hold.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a name that is not UTF-8 cannot be passed on: %r" % text)
    return '"%s"' % "".join(
        ESCAPES.get(c) or ("\\u%04x" % ord(c) if ord(c) < 32 or ord(c) == 127 else c) for c in text
    )


def settings_text(command, settings):
    """Return the TOML text of a command's settings; None stands for the engine's default and is left out."""
    lines = ["%s = %s" % (key, toml_value(value)) for key, value in settings.items() if value is not None]
    return "\n".join(["[%s]" % command] + lines + [""])


def write_settings(path, command, settings):
    """Write :func:`settings_text`, as a whole or not at all."""
    with open(path + ".part", "w", encoding="utf-8", newline="\n") as out:
        out.write(settings_text(command, settings))
    os.replace(path + ".part", path)


def digest(*parts):
    """Return a short hash of settings and descriptions of inputs, for steps to be compared by."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
