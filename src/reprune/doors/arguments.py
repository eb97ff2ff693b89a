"""Lets `--calibration` and `--heldout` take several values after one flag. Knows nothing of what they mean."""

from __future__ import annotations

_MANY = ("--calibration", "--heldout")
_SWITCHES = ("-q", "--quiet", "-v", "--verbose", "--trust-remote-code", "--help")


def separate_sources(arguments: list[str]) -> list[str]:
    """Repeat the flag before each of its values: `--calibration a b` becomes `--calibration a --calibration b`.

    A value that begins with a dash ends the list. Where no MODEL has come before the flag and none comes after its
    values, the last of them is the MODEL.
    """
    result: list[str] = []
    position, has_model = 1, False
    result += arguments[:1]  # the command
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument not in _MANY:
            result.append(argument)
            if argument.startswith("-"):
                if argument not in _SWITCHES and "=" not in argument and position < len(arguments):
                    result.append(arguments[position])  # the flag's value
                    position += 1
            else:
                has_model = True
            continue
        values = []
        while position < len(arguments) and not arguments[position].startswith("-"):
            values.append(arguments[position])
            position += 1
        model: list[str] = []
        if len(values) > 1 and not has_model and position >= len(arguments):
            model = [values.pop()]
        for value in values:
            result += [argument, value]
        if not values:
            result.append(argument)
        result += model
    return result
