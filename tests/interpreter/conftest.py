"""Less of Triton's interpreter's own work, which tests would wait for."""

from typing import Any

from triton.runtime.interpreter import InterpretedFunction

_call_of_triton = InterpretedFunction.__call__


def _call(function: InterpretedFunction, *arguments: Any, **named: Any) -> Any:
    if function.fn.__module__.startswith("dis_cli."):
        return function.rewrite()(*arguments, **named)
    return _call_of_triton(function, *arguments, **named)


# A launch puts the interpreter's functions into the module `triton.language`, and every call of a helper does so once
# more, which takes most of the time. The engine's own helpers use the module that the launch has changed.
InterpretedFunction.__call__ = _call
