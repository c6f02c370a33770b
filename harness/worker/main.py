"""Commands of the worker. `start`, `look`, `stop` and `facts` print one line of JSON."""

import argparse
import sys

from edgesdk.harness.worker import facts, jobs, runner, store


def main() -> int:
    """Parse the command line and run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="worker")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("facts")
    for name in ("start", "look", "stop"):
        command = commands.add_parser(name)
        command.add_argument("--state", required=True)
        command.add_argument("--job", required=True)
        if name != "look":
            command.add_argument("--spec", required=name == "start")
        if name == "start":
            command.add_argument("--pack")
        if name == "stop":
            command.add_argument("--remove", action="store_true")
    runner.add_commands(commands.add_parser("runtime"))
    arguments = parser.parse_args()
    if arguments.command == "runtime":
        return runner.main(arguments)
    if arguments.command == "facts":
        jobs.print_json(facts.collect())
        return 0
    if arguments.command not in ("start", "look", "stop"):
        parser.print_usage(sys.stderr)
        return runner.USAGE
    state = store.state_folder(arguments.state)
    if arguments.command == "start":
        if arguments.pack:
            store.unpack(state, arguments.pack)
        jobs.print_json(jobs.start(state, arguments.job, arguments.spec))
    elif arguments.command == "look":
        jobs.print_json(jobs.look(state, arguments.job))
    else:
        status = jobs.stop(state, arguments.job)
        if arguments.remove:
            jobs.remove(state, arguments.job, arguments.spec)
        jobs.print_json(status)
    return 0
