"""Commands of the worker. `start`, `look`, `stop`, `fence` and `facts` print one line of JSON; `work` does a job."""

import argparse
import sys

from edgesdk.harness.worker import child, facts, fence, jobs, runner, store, timing


def main() -> int:
    """Parse the command line and run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="worker")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("facts")
    commands.add_parser("clock")
    command = commands.add_parser("fence")
    command.add_argument("--state", required=True)
    command.add_argument("--epoch", type=int, required=True)
    for name in ("start", "look", "stop", "work"):
        command = commands.add_parser(name)
        command.add_argument("--state", required=True)
        command.add_argument("--job", required=True)
        if name in ("start", "work"):
            command.add_argument("--resume", action="store_true")
        if name in ("start", "stop"):
            command.add_argument("--spec", required=name == "start")
        if name == "start":
            command.add_argument("--pack")
        if name == "stop":
            command.add_argument("--remove", action="store_true")
    runner.add_commands(commands.add_parser("runtime"))
    arguments = parser.parse_args()
    if arguments.command == "runtime":
        return runner.main(arguments)
    if arguments.command == "clock":
        jobs.print_json(timing.now_ns())
        return 0
    if arguments.command == "facts":
        jobs.print_json(facts.collect())
        return 0
    if arguments.command not in ("start", "look", "stop", "work", "fence"):
        parser.print_usage(sys.stderr)
        return child.USAGE
    state = store.state_folder(arguments.state)
    if arguments.command == "start":
        if arguments.pack:
            store.unpack(state, arguments.pack)
        jobs.print_json(jobs.start(state, arguments.job, arguments.spec, arguments.resume))
    elif arguments.command == "work":
        jobs.work_here(state, arguments.job, arguments.resume)
    elif arguments.command == "fence":
        code, words = fence.check(state, arguments.epoch)
        jobs.print_json({"exit": code, "text": words})
        return code
    elif arguments.command == "look":
        jobs.print_json(jobs.look(state, arguments.job))
    else:
        status = jobs.stop(state, arguments.job)
        if arguments.remove:
            jobs.remove(state, arguments.job, arguments.spec)
        jobs.print_json(status)
    return 0
