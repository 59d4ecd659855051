"""What the example programs have in common: checked options, resuming with the stored ones, exit codes, Ctrl-C."""

import argparse
import os
import shlex
import sys


class OptionError(ValueError):
    """An option, or a combination of options, that cannot work."""


class Parser(argparse.ArgumentParser):
    """A command line whose errors are `OptionError`s.

    Args:
        suppress_defaults: let the result hold only what was typed.
    """

    def __init__(self, text, suppress_defaults=False):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.suppress_defaults = suppress_defaults

    def add(self, name, default, text, **more):
        """An option with its default, which is said in the help and gives the type."""
        if more.get("action") is None and default is not None:
            more.setdefault("type", type(default))
            text += f" (default: {default})"
        self.add_argument(name, default=argparse.SUPPRESS if self.suppress_defaults else default, help=text, **more)

    def error(self, message):
        raise OptionError(message)


def flag(name):
    return "--" + name.replace("_", "-")


def check_ranges(options, at_least, at_most):
    """Raise `OptionError` for an option outside of its range; the least is 0 where `at_least` says nothing."""
    for name, most in at_most.items():
        value, least = getattr(options, name), at_least.get(name, 0)
        if not least <= value <= most:  # NaN, too
            raise OptionError(f"{flag(name)} must be from {least} to {most}, got {value}")


def take_stored(options, stored, typed):
    """Set the stored options of the run in --out; one that was typed and differs is an `OptionError`."""
    for name, value in stored.items():
        if typed.get(name, value) != value:
            raise OptionError(
                f"{flag(name)} {typed[name]} contradicts the run in {options.out}, "
                f"which was started with {flag(name)} {value}"
            )
        setattr(options, name, value)


def make_folder(folder):
    """The folder --out, writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"--out {folder} is not writable")


def last_line(error):
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def exit_code(program, start, work, argv=None):
    """Run a program: `start(argv)` checks and prepares a run, `work(run)` does it. Returns the exit code.

    0: done. 1: it failed. 2: bad input, nothing has begun. 130: Ctrl-C; `run.history` has an entry per epoch done.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    run = None

    def say_error(text):
        print(f"{program}: error: {text}", file=sys.stderr)

    try:
        try:
            run = start(argv)
        except ValueError as error:  # nothing has begun: it is the input
            say_error(last_line(error))
            return 2
        work(run)
    except KeyboardInterrupt:
        again = [sys.executable, sys.argv[0], *(word for word in argv if word != "--resume"), "--resume"]
        done = len(run.history) if run else 0
        stopped = f"stopped after {done} whole epochs" if done else "stopped"
        print(f"\n{stopped}; to go on:\n    {shlex.join(again)}", file=sys.stderr)
        return 130
    except (OptionError, OSError, MemoryError) as error:
        say_error(last_line(error) if not isinstance(error, MemoryError) else f"out of memory: {last_line(error)}")
        return 1
    except Exception as error:
        # PyTorch's and TensorFlow's way to say it
        if "allocate memory" not in str(error) and type(error).__name__ != "ResourceExhaustedError":
            raise
        say_error(f"out of memory: {last_line(error)}")
        return 1
    return 0
